"""Models from the Hub: what is downloaded, checked, refused and found again without a network."""

import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from jobs.submit import check_parent
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.core import hub_pace
from pipeline.core.errors import UserError
from pipeline.core.retry import Patience
from pipeline.interop import export as exporting
from pipeline.interop import hub_models, timm, trained_model
from pipeline.interop.hub_models import Listed, parse
from pipeline.train.initial_weights import read_parent
from tests.helpers.hub_here import lead_to
from tests.helpers.hub_server import HubServer
from tests.helpers.launch import REPOSITORY
from tests.helpers.mistakes import mistake
from tests.helpers.models import random_model

CONFIG = ModelConfig("tiny", 32)
NAMES = [f"n{index}" for index in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm folder of a model with random weights."""
    folder = tmp_path_factory.mktemp("timm")
    timm.write(folder, CONFIG, random_model(CONFIG).state_dict(), NAMES)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.users["letter"] = "me"
        lead_to(monkeypatch, server, tmp_path / "home")
        yield server


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="pipeline")
    return caplog


def fetch(text: str) -> hub_models.Downloaded:
    address = parse(text, "MODEL")
    assert address is not None
    return hub_models.fetch(address, "MODEL")


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf://timm/vit_base.x_in21k", "timm/vit_base.x_in21k", "main"),
        ("hf:/timm/it@v1", "timm/it", "v1"),  # as pathlib leaves it
        ("hf-hub:timm/it@refs/pr/1", "timm/it", "refs/pr/1"),
    ],
)
def test_addresses(text: str, repository: str, revision: str) -> None:
    found = parse(text, "MODEL")
    assert found is not None
    assert (found.repository, found.revision) == (repository, revision)
    assert parse(Path(text), "MODEL") == found


@pytest.mark.parametrize("text", ["hf://timm", "hf://datasets/timm/it", "hf-hub:a/b@", "hf://../b", "hf://a/b/c.bin"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--parent '.*' does not name a model on the Hub: write hf://OWNER/NAME"):
        parse(text, "--parent")


def test_a_job_is_submitted_with_a_parent_on_the_hub() -> None:
    check_parent("hf-hub:timm/it")  # no server is asked
    with pytest.raises(UserError, match="--parent 'hf://it' does not name a model on the Hub"):
        check_parent("hf://it")


def test_paths_are_no_addresses() -> None:
    assert all(parse(text, "MODEL") is None for text in ("hf/timm", "s3://a/b", "B_16.npz", "scratch", ""))


def test_a_model_is_downloaded_once_and_pinned(server: HubServer, folder: Path, said: pytest.LogCaptureFixture) -> None:
    commit = server.add("models", "timm/it", folder)
    found = fetch("hf-hub:timm/it")
    assert found.name == f"hf://timm/it@{commit}"
    assert (found.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    (first,) = said.messages
    assert first.startswith(  # and the sizes
        f"downloading hf://timm/it@main at commit {commit[:12]} from {server.endpoint}: config.json ("
    )
    assert "model.safetensors (" in first
    assert server.count("storage") == 1
    assert server.count("resolve", method="HEAD") == server.count("resolve") == 2, "one question and one GET per file"
    before = server.count("storage") + server.count("resolve")
    assert fetch("hf://timm/it") == found
    assert server.count("storage") + server.count("resolve") == before, "nothing is downloaded again"
    assert len(said.messages) == 1
    model = trained_model.load(hub_models.resolved(Path("hf://timm/it")))
    x_BCHW = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert exporting.build(model)(x_BCHW).equal(random_model(CONFIG).eval()(x_BCHW))
    # the branch moves on, the commit stays
    server.add("models", "timm/it", {**{path.name: path for path in folder.iterdir()}, "more.txt": b"x"})
    assert fetch("hf://timm/it").name != found.name
    assert fetch(f"hf://timm/it@{commit}").name == found.name


def test_the_parent_is_in_the_lineage_with_commit_and_hash(server: HubServer, folder: Path) -> None:
    commit = server.add("models", "timm/it", folder)
    parent = read_parent(RunConfig(stage="finetune", parent="hf-hub:timm/it"))
    assert parent is not None
    sha256 = hub_models.hashed(folder / "model.safetensors")
    assert parent.lineage == {"weights": f"hf://timm/it@{commit}", "sha256": sha256}
    assert parent.model.variant == "tiny"
    assert "head.weight" not in parent.weights


def test_parts_are_downloaded_with_their_index(server: HubServer, folder: Path, tmp_path: Path) -> None:
    state = random_model(CONFIG).state_dict()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    files: dict[str, bytes | Path] = {"config.json": folder / "config.json", "README.md": b"big"}
    for part, own in parts.items():
        save_file({name: state[name].clone() for name in own}, tmp_path / part)
        files[part] = tmp_path / part
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    server.add("models", "me/parts", files)
    found = fetch("hf://me/parts")
    assert sorted(path.name for path in found.folder.iterdir()) == sorted(set(files) - {"README.md"})
    assert found.sha256 == ""
    loaded = trained_model.load(found.folder)
    assert all(loaded.weights[name].equal(state[name]) for name in names)


def test_pickles_are_refused_and_not_downloaded(server: HubServer, folder: Path) -> None:
    server.add("models", "me/old", {"config.json": folder / "config.json", "pytorch_model.bin": b"pickle"})
    with pytest.raises(UserError, match=r"^MODEL 'hf://me/old@main' has its weights in pytorch_model\.bin, a pickle"):
        fetch("hf://me/old")
    assert not server.count("resolve", method="HEAD")


def test_what_holds_no_model_is_refused() -> None:
    for files, words in (
        (["README.md"], "has no model.safetensors: choose a ViT of timm or transformers (see PAGE/tree/main)"),
        (["model.safetensors"], "has no config.json: choose"),
    ):
        with pytest.raises(UserError) as caught:
            hub_models.choose([Listed(name, 1, "") for name in files], "MODEL", "PAGE")
        assert words in str(caught.value)


def test_a_gated_model_names_the_page(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("models", "me/gated", folder, gated=True)
    with pytest.raises(UserError, match=rf"me/gated is gated: accept its terms at {server.endpoint}/me/gated and log"):
        fetch("hf://me/gated")
    monkeypatch.setenv("HF_TOKEN", "letter")
    with pytest.raises(UserError, match=r"^MODEL .*your token has no access") as caught:
        fetch("hf://me/gated")
    assert "letter" not in str(caught.value)
    server.repositories["models", "me/gated"].readers.add("me")
    assert fetch("hf://me/gated").sha256
    with pytest.raises(UserError, match="doesn't exist or is private"):
        fetch("hf://me/nowhere")
    with pytest.raises(UserError, match="no such revision"):
        fetch("hf://me/gated@v9")


def test_the_ranks_of_a_node_ask_and_download_once(server: HubServer, folder: Path, tmp_path: Path) -> None:
    server.add("models", "timm/it", folder)
    program = "from pipeline.interop.hub_models import *; print(fetch(Address('timm/it', 'main'), 'MODEL').name)"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
            env=os.environ | server.environment(tmp_path / "node") | {
                "VIT_CACHE": str(tmp_path / "vit"), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "4",
                "TORCHELASTIC_RUN_ID": "it",
            },
        )
        for rank in range(4)
    ]  # fmt: skip
    names = {rank.communicate(timeout=120)[0].strip() for rank in ranks}
    assert names == {f"hf://timm/it@{server.repositories['models', 'timm/it'].head}"}
    assert server.count("storage") == 1
    assert server.count("api", "/revision/main") == server.count("api", "/tree/") == 1


@pytest.mark.parametrize(
    ("module", "words"),
    [("jobs.predict", ["image.jpg"]), ("jobs.evaluate", ["--data", "it"]), ("jobs.suite", ["--data-root", "it"])],
)
@pytest.mark.usefixtures("server")
def test_commands_look_for_a_model_on_the_hub(
    module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, monkeypatch, module, "hf://me/nowhere@v1", *words)
    assert "MODEL 'hf://me/nowhere@v1': model me/nowhere doesn't exist or is private" in line
    line = mistake(capsys, monkeypatch, module, "hf://nowhere", *words)
    assert "MODEL 'hf://nowhere' does not name a model on the Hub: write hf://OWNER/NAME" in line


def test_a_cut_download_is_resumed(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 12)  # 10 MB, of which a part is dropped
    server.add("models", "timm/it", folder)
    server.fail("storage", ["cut", ""])
    found = fetch("hf://timm/it")
    assert (found.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    half = (folder / "model.safetensors").stat().st_size // 2
    first, second = (request.range for request in server.requests if request.part == "storage")
    assert first == ""
    assert half - (1 << 12) <= int(second.removeprefix("bytes=").removesuffix("-")) <= half


@pytest.mark.parametrize(
    ("part", "path", "fault"),
    [
        ("api", "/revision/main", "429"),
        ("api", "/revision/main", "429-retry-after"),
        ("api", "/revision/main", "503"),
        ("api", "/tree/", "429"),
        ("storage", "", "503"),
    ],
)
def test_a_busy_server_is_asked_again(server: HubServer, folder: Path, part: str, path: str, fault: str) -> None:
    commit = server.add("models", "timm/it", folder)
    server.fail(part, ["", fault] if path == "/tree/" else [fault])  # the commit is asked for first
    found = fetch("hf://timm/it")
    assert found.name == f"hf://timm/it@{commit}"
    assert (found.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    first, second = [one for one in server.requests if one.part == part and path in one.path][:2]
    assert (first.fault, second.fault) == (fault, "")
    if fault != "503":
        assert second.at - first.at > 0.9, "asked again before the server allowed it"


def test_a_server_that_stays_busy_is_one_line(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("models", "timm/it", folder)
    monkeypatch.setattr(hub_pace, "QUESTION", Patience(seconds=0.2, pause=0.01))
    server.fail("api", itertools.repeat("503"))
    with pytest.raises(UserError, match=rf"^MODEL 'hf://timm/it@main': {server.endpoint} answers 503: try again later"):
        fetch("hf://timm/it")


def test_wrong_bytes_are_refused_and_removed(server: HubServer, folder: Path) -> None:
    server.add("models", "timm/it", folder)
    server.fail("storage", ["wrong", ""])
    with pytest.raises(UserError, match=r"model\.safetensors has sha256 \w+, the Hub states \w+: the file was removed"):
        fetch("hf://timm/it")
    assert (fetch("hf://timm/it").folder / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_offline_finds_the_cache_or_says_what_to_copy(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    server.add("models", "timm/it", folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        fetch("hf://timm/it")
    text = str(caught.value)
    assert "is not in the cache, and HF_HUB_OFFLINE is set: on a machine with network run 'hf download timm/it" in text
    assert f"copy its folder models--timm--it into {constants.HF_HUB_CACHE}" in text
    assert not server.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = fetch("hf://timm/it")
    server.add("models", "timm/it", {"config.json": b"{}"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("hf://timm/it") == found
    assert said.messages[-1].startswith("hf://timm/it@main: no network; using commit ")
    for path in (Path(constants.HF_HUB_CACHE).parent / "vit").rglob("*.json"):
        path.unlink()  # as on a machine to which the folder was copied
    assert fetch("hf://timm/it") == found


def test_without_network_the_line_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as server:
        lead_to(monkeypatch, server, tmp_path / "home")
    with pytest.raises(UserError, match=rf"not in the cache, and {server.endpoint} can't be reached \("):
        fetch("hf://timm/it")
