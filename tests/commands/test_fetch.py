"""vit fetch: what it downloads, prints and checks, from servers of this machine; resumed, refused, offline."""

import base64
import hashlib
import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from jobs import fetch
from jobs.fetch import SUMS
from pipeline.config.schema import ModelConfig
from pipeline.core import download, hub_pace
from pipeline.core.errors import UserError
from pipeline.core.retry import Patience
from pipeline.interop import npz, published_weights, timm
from pipeline.interop.load import load_weights
from pipeline.interop.published_weights import WEIGHTS, Weights
from tests.helpers.hub_here import lead_to
from tests.helpers.hub_http import Handler, Listener, Traffic, handler_of
from tests.helpers.hub_server import HubServer
from tests.helpers.mistakes import mistake
from tests.helpers.models import random_model
from tests.helpers.serving import serving

CONFIG = ModelConfig("tiny", 32)
SOURCE = WEIGHTS["b16"].source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm folder and an .npz of a model with random weights."""
    folder = tmp_path_factory.mktemp("timm")
    model = random_model(CONFIG)
    timm.write(folder, CONFIG, model.state_dict(), [f"n{index}" for index in range(10)])
    npz.write(folder / "tiny.npz", CONFIG, model.state_dict())
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with HubServer() as server:
        server.users["hf_letter"] = "me"
        lead_to(monkeypatch, server, tmp_path / "home", "hf_letter")
        server.add("models", SOURCE, {name: folder / name for name in published_weights.FILES} | {"README.md": b"x"})
        yield server


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> Path:
    """The path that ``vit fetch WORDS`` prints."""
    monkeypatch.setattr(sys, "argv", ["fetch", *map(str, words)])
    assert fetch.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    return Path(line)


def test_weights_are_downloaded_once_and_their_hash_is_kept(
    server: HubServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: pytest.LogCaptureFixture,
) -> None:
    path = run(monkeypatch, capsys, "b16")
    assert path == tmp_path / "home" / "vit" / "weights" / "b16"
    for name in published_weights.FILES:
        assert (path / name).read_bytes() == (folder / name).read_bytes()
    sums = dict(line.split()[::-1] for line in (path / SUMS).read_text().splitlines())
    assert sums == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in published_weights.FILES}
    commit = server.repositories["models", SOURCE].head
    address, sha256 = f"{server.endpoint}/{SOURCE}/resolve/{commit}/model.safetensors", sums["model.safetensors"]
    assert any(text.startswith(f"downloading {address} (4.9 MB, sha256 {sha256}) into") for text in said.messages)
    assert {request.token for request in server.requests if request.part == "storage"} == {""}, "the login stays here"
    assert {request.token for request in server.requests if request.part == "resolve"} == {"hf_letter"}
    assert "hf_letter" not in said.text
    before = len(server.requests)
    assert run(monkeypatch, capsys, "b16") == path
    assert len(server.requests) == before, "what lies there is not asked for again"
    assert load_weights(path, trunk=True)[0].variant == "tiny"


def test_a_killed_download_is_resumed_by_the_next(
    server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    stated = published_weights.stated(WEIGHTS["b16"], "model.safetensors", "NAME")
    out = tmp_path / "out"
    out.mkdir()
    (out / f".model.safetensors.{stated.part}.part").write_bytes(whole[: len(whole) // 4])
    (out / ".model.safetensors.another.part").write_bytes(b"of an older commit")
    server.fail("storage", ["cut", "503", "429-retry-after", "expired", ""])
    server.retry_after = 0
    with pytest.raises(UserError, match=r"can't be downloaded \(status 403\)"):
        run(monkeypatch, capsys, "b16", "--out", out)
    assert run(monkeypatch, capsys, "b16", "--out", out) == out
    assert (out / "model.safetensors").read_bytes() == whole
    at = [int(one.range[6:-1]) for one in server.requests if one.part == "storage" and one.method == "GET"]
    assert at[0] == len(whole) // 4
    assert len(whole) // 4 < at[1] == at[2] == at[3] == at[4] < len(whole)
    assert sorted(path.name for path in out.iterdir()) == [".lock", SUMS, *sorted(published_weights.FILES)]


def test_wrong_bytes_are_refused_and_removed(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail("storage", ["wrong", ""])
    line = mistake_of(capsys, monkeypatch, "b16", "--out", tmp_path / "out")
    assert "arrived with sha256" in line
    assert "the file was removed, run the same command again" in line
    assert [path.name for path in (tmp_path / "out").iterdir() if "model" in path.name] == []
    assert (run(monkeypatch, capsys, "b16", "--out", tmp_path / "out") / "model.safetensors").is_file()


def test_offline_says_what_to_copy_where(
    server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    out = tmp_path / "out"
    line = mistake(capsys, monkeypatch, "jobs.fetch", "b16", "--out", out)
    assert (
        f"download {server.endpoint}/{SOURCE}/resolve/main/config.json and {server.endpoint}/{SOURCE}/resolve" in line
    )
    assert f"on a machine with network and copy both into {str(out)!r}" in line
    for name in published_weights.FILES:
        (out / name).write_bytes((folder / name).read_bytes())
    assert run(monkeypatch, capsys, "b16", "--out", out) == out
    assert not server.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "WEIGHTS", {"tiny-npz": Weights("tiny", "https://127.0.0.1:9/tiny.npz")})
    line = mistake_of(capsys, monkeypatch, "tiny-npz", "--out", out)
    assert "https://127.0.0.1:9 can't be reached (" in line
    assert f"download https://127.0.0.1:9/tiny.npz on a machine with network and copy it into {str(out)!r}" in line


def mistake_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    with pytest.raises(UserError) as caught:
        run(monkeypatch, capsys, *words)
    return str(caught.value)


@pytest.mark.parametrize("fault", ["", "cut", "wrong"])
def test_an_npz_is_checked_by_the_storages_hash(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.01)
    whole = (folder / "tiny.npz").read_bytes()
    traffic = Traffic()
    traffic.faults["storage"] = iter(["", fault])  # of HEAD, and of the first GET
    md5 = base64.b64encode(hashlib.md5(whole, usedforsecurity=False).digest()).decode()

    def answer(handler: Handler) -> None:
        handler.content(whole, {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"}, handler.begin("storage"))

    with serving(Listener(("127.0.0.1", 0), handler_of(traffic, "storage", answer))) as address:
        monkeypatch.setattr(fetch, "WEIGHTS", {"tiny-npz": Weights("tiny", f"{address}/tiny.npz")})
        words = ("tiny-npz", "--out", tmp_path / "out")
        if fault == "wrong":
            assert "arrived with md5" in mistake_of(capsys, monkeypatch, *words)
        path = run(monkeypatch, capsys, *words)
    assert path == tmp_path / "out" / "tiny.npz"
    assert path.read_bytes() == whole
    assert (path.parent / SUMS).read_text() == f"{hashlib.sha256(whole).hexdigest()}  tiny.npz\n"
    assert load_weights(path)[0].variant == "tiny"


def test_a_busy_server_is_asked_again(
    server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    server.fail("resolve", ["429-retry-after"])  # the question for the size of config.json
    server.fail("storage", ["429"])  # of the weights, with a RateLimit header alone
    assert run(monkeypatch, capsys, "b16", "--out", out) == out
    assert (out / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for part, path in (("resolve", "config.json"), ("storage", "")):
        first, second = [one for one in server.requests if one.part == part and path in one.path][:2]
        assert first.fault.startswith("429")
        assert second.at - first.at > 0.9, "asked again before the server allowed it"


def test_a_storage_that_answers_an_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_pace, "QUESTION", Patience(seconds=0.2, pause=0.01))
    traffic = Traffic()
    statuses = itertools.chain([404], itertools.repeat(503))

    def answer(handler: Handler) -> None:
        handler.begin("storage")
        handler.send(next(statuses), b"", {})

    with serving(Listener(("127.0.0.1", 0), handler_of(traffic, "storage", answer))) as address:
        monkeypatch.setattr(fetch, "WEIGHTS", {"tiny-npz": Weights("tiny", f"{address}/tiny.npz")})
        assert "answers 404: choose other weights" in mistake_of(capsys, monkeypatch, "tiny-npz", "--out", tmp_path)
        assert len(traffic.requests) == 1
        assert "answers 503: try again later" in mistake_of(capsys, monkeypatch, "tiny-npz", "--out", tmp_path)


def test_the_table_names_all_with_their_sources(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch"])
    monkeypatch.setenv("COLUMNS", "200")
    assert fetch.main() == 0
    table = capsys.readouterr().out
    for name, weights in WEIGHTS.items():
        (line,) = [line for line in table.splitlines() if line.startswith(f"{name} ")]
        assert weights.source in line
        assert weights.size in line
    assert "86.01% (timm)" in table


def test_mistakes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, expected in (
        (["b61"], "NAME 'b61' is unknown: did you mean b16? There are b16, b32"),
        (["google/vit-large-patch16"], "did you mean l16?"),
        (["--out", tmp_path], "has no effect without NAME"),
        (["b16", "--out", "s3://bucket/x"], "is not a path"),
    ):
        assert expected in mistake(capsys, monkeypatch, "jobs.fetch", *words)
