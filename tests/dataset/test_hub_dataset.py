"""Datasets on the Hub: addresses, commits, file lists and files, from a server of this machine with all its faults."""

import itertools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import hub_pace
from pipeline.core.errors import UserError
from pipeline.core.retry import GoneError, Patience
from pipeline.dataset import hub_dataset
from pipeline.dataset.hub_reader import HubFile, WrongContentError
from pipeline.dataset.shard_cache import Cache, Wanted
from tests.helpers.hub_server import HubServer
from tests.helpers.waiting import wait_until

QUICK = Patience(seconds=30.0, pause=0.01, longest_pause=0.05, stall=1.5)
SHARD = bytes(range(251)) * 20_000  # 5 MB: several chunks
TOKEN = "hf_s3cretT0ken"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    hub_dataset.files.cache_clear()
    with HubServer() as server:
        server.users[TOKEN] = "someone"
        server.add("datasets", "owner/set", {"a.tar": SHARD, "deep/b.tar": b"b" * 9, "README.md": b"# A set"})
        server.lead(monkeypatch, tmp_path, TOKEN)
        yield server


def pinned(server: HubServer, path: str = "a.tar") -> str:
    return f"hf://datasets/owner/set@{server.repositories['datasets', 'owner/set'].head}/{path}"


def whole(file: HubFile, size: int = len(SHARD)) -> bytes:
    return b"".join(file.all(size))


@pytest.mark.parametrize(
    ("url", "repo", "revision", "path"),
    [
        ("hf://datasets/timm/imagenet-1k-wds", "timm/imagenet-1k-wds", "main", ""),
        ("hf://datasets/timm/imagenet-1k-wds/", "timm/imagenet-1k-wds", "main", ""),
        ("hf://datasets/o/n@v1.0/train/part-1", "o/n", "v1.0", "train/part-1"),
        ("hf://datasets/o/n@refs/pr/3/train", "o/n", "refs/pr/3", "train"),
        ("hf://datasets/o/n@refs%2Fpr%2F3", "o/n", "refs/pr/3", ""),
        ("hf://datasets/o/n/a@b.tar", "o/n", "main", "a@b.tar"),
    ],
)
def test_the_parts_of_an_address(url: str, repo: str, revision: str, path: str) -> None:
    assert hub_dataset.parse(url) == hub_dataset.Place(repo, revision, path)
    assert hub_dataset.parse(hub_dataset.parse(url).url) == hub_dataset.parse(url)


@pytest.mark.parametrize(
    "url",
    ["hf://", "hf://datasets/name", "hf://owner/name", "hf://models/o/n", "hf://datasets/o/n/../../x", "hf://a:b@c/d"],
)
def test_other_addresses_are_refused_in_one_line(url: str) -> None:
    with pytest.raises(UserError, match="hf://datasets/OWNER/NAME"):
        hub_dataset.parse(url)


def test_a_branch_is_pinned_and_a_push_changes_nothing(server: HubServer) -> None:
    first = hub_dataset.pinned("hf://datasets/owner/set/deep")
    assert first == f"hf://datasets/owner/set@{server.repositories['datasets', 'owner/set'].head}/deep"
    assert hub_dataset.files(first) == {"b.tar": 9}
    second = server.add("datasets", "owner/set", {"deep/b.tar": b"c" * 10})
    assert hub_dataset.pinned("hf://datasets/owner/set/deep") == first, "asked for again within a minute"
    assert hub_dataset.pinned(first) == first
    assert hub_dataset.files(f"hf://datasets/owner/set@{second}") == {"deep/b.tar": 10}
    hub_dataset.files.cache_clear()
    assert hub_dataset.files(first) == {"b.tar": 9}
    assert b"".join(HubFile(f"{first}/b.tar", QUICK).all(9)) == b"b" * 9
    assert server.count("api", "/revision/main") == 1
    assert server.count("api", "/tree/") == 2


def test_a_long_list_comes_in_pages(server: HubServer) -> None:
    server.page = 7
    commit = server.add("datasets", "owner/long", {f"train-{number:04d}.tar": b"x" * number for number in range(50)})
    found = hub_dataset.files(f"hf://datasets/owner/long@{commit}")
    assert found == {f"train-{number:04d}.tar": number for number in range(50)}
    assert server.count("api", "/tree/") == 8


def test_the_token_goes_to_the_hub_alone(server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.fail("storage", ["503", "expired"])
    assert hub_dataset.size_of(pinned(server)) == len(SHARD)
    assert whole(HubFile(pinned(server), QUICK)) == SHARD
    assert {request.token for request in server.requests if request.part != "storage"} == {TOKEN}
    assert {request.token for request in server.requests if request.part == "storage"} == {""}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN not in caplog.text + repr(HubFile(pinned(server), QUICK).__dict__)
    assert TOKEN.encode() not in written


@pytest.mark.parametrize(
    ("part", "faults"),
    [
        ("resolve", ["503"]),
        ("resolve", ["429"]),
        ("resolve", ["429-retry-after"]),
        ("storage", ["503", "cut", "cut"]),
        ("storage", ["stall"]),
        ("storage", ["expired"]),
        ("resolve", ["slow"]),
    ],
)
def test_each_fault_is_survived(server: HubServer, part: str, faults: list[str]) -> None:
    server.retry_after = 1
    server.fail(part, faults)
    began = time.monotonic()
    assert whole(HubFile(pinned(server), QUICK)) == SHARD
    if faults[0].startswith("429"):
        assert time.monotonic() - began > 0.9, "asked again before the Hub allowed it"
    storage = [request for request in server.requests if request.part == "storage"]
    if faults[0] in ("stall", "cut"):  # resumed behind what had arrived
        assert storage[-1].range != storage[0].range
        assert storage[-1].range.endswith(f"-{len(SHARD) - 1}")


def test_a_signed_address_serves_many_ranges_and_is_renewed(server: HubServer) -> None:
    server.signature_seconds = 0.4
    file = HubFile(pinned(server), QUICK)
    began = time.monotonic()
    for number in range(30):
        at = number * 99_991
        assert b"".join(file.read(at, at + 100)) == SHARD[at : at + 100]
        time.sleep(0.03)
    assert 3 <= server.count("resolve") <= 2 + (time.monotonic() - began) / 0.4


def test_a_wrong_content_is_fetched_again_once(server: HubServer, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "shards", 10**8, QUICK)
    cache.check([len(SHARD)])
    wanted = Wanted(pinned(server), len(SHARD), "")
    server.fail("storage", ["wrong"])
    with cache.open(wanted) as file:
        assert os.pread(file, len(SHARD), 0) == SHARD
    (cache.folder / wanted.name).unlink()
    server.fail("storage", itertools.repeat("wrong"))
    with pytest.raises(WrongContentError, match=r"a\.tar has SHA-256 .*, the Hub lists"), cache.open(wanted):
        pass
    assert server.count("storage") == 4
    assert [path.name for path in cache.folder.iterdir()] == [".room"]


def test_patience_ends(server: HubServer) -> None:
    server.fail("storage", itertools.repeat("503"))
    brief = Patience(seconds=0.5, pause=0.01, longest_pause=0.05, stall=9.0)
    with pytest.raises(OSError, match=r"a\.tar: gave up after 0 s: .*HTTP 503 of 127\.0\.0\.2"):
        whole(HubFile(pinned(server), brief))
    server.fail("resolve", itertools.repeat("429"))
    server.retry_after = 0
    with pytest.raises(OSError, match="gave up"):
        whole(HubFile(pinned(server), brief))
    assert server.count("resolve") < 60


def test_refusals_are_one_line_and_not_repeated(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.add("datasets", "owner/gated", {"a.tar": b"x"}, gated=True)
    server.add("datasets", "owner/private", {"a.tar": b"x"}, private=True)
    gated = hub_dataset.pinned("hf://datasets/owner/gated")
    assert hub_dataset.files(gated) == {"a.tar": 1}, "the list of a gated dataset is public"
    page = f"{server.endpoint}/datasets/owner/gated"
    cases = [
        (lambda: whole(HubFile(f"{gated}/a.tar", QUICK), 1), f"owner/gated is gated.* {page}"),
        (lambda: whole(HubFile(pinned(server, "none.tar"), QUICK), 1), "none.tar: .* 404"),
        (lambda: hub_dataset.pinned("hf://datasets/owner/set@v9"), "no such revision"),
        (lambda: hub_dataset.pinned("hf://datasets/owner/none"), "doesn't exist or is private"),
        (lambda: hub_dataset.pinned("hf://datasets/owner/private"), "doesn't exist or is private"),
        (lambda: hub_dataset.size_of(pinned(server, "none.tar")), "none.tar is missing"),
    ]
    for token in (TOKEN, ""):
        monkeypatch.setenv("HF_TOKEN", token)
        for question, said in cases:
            before = len(server.requests)
            with pytest.raises(GoneError, match=said):
                question()
            assert len(server.requests) - before <= 2
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(GoneError, match="your token is not valid"):
        hub_dataset.pinned("hf://datasets/owner/set@v2")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)  # as `hf auth login` leaves it
    server.repositories["datasets", "owner/gated"].readers.add("someone")
    assert whole(HubFile(f"{gated}/a.tar", QUICK), 1) == b"x"


def test_a_dead_network_and_offline_mode_are_one_line(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    place = hub_dataset.parse("hf://datasets/owner/set")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"gave up after 0 s.*can't be reached .*check the network"):
        hub_dataset.ask(place, lambda api: api.dataset_info(place.repo), Patience(seconds=0.1, pause=0.01))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GoneError, match="HF_HUB_OFFLINE is set"):
        hub_dataset.ask(place, lambda api: api.dataset_info(place.repo))
    assert not server.requests


def test_one_refusal_holds_back_all_processes_of_the_node(server: HubServer, tmp_path: Path) -> None:
    server.retry_after = 1
    server.fail("resolve", ["429"])
    first = HubFile(pinned(server), QUICK)
    with ThreadPoolExecutor(8) as pool:
        began = time.time()
        refused = pool.submit(whole, first)
        pause = tmp_path / f"vit-hub-{os.getuid()}" / "pause"
        wait_until(lambda: pause.exists() and pause.stat().st_mtime > began + 0.9)
        others = [pool.submit(whole, HubFile(pinned(server), QUICK)) for _ in range(7)]
        assert all(future.result() == SHARD for future in (refused, *others))
    assert began + 1 < time.time()
    at = sorted(request.at for request in server.requests if request.part == "resolve")
    assert len(at) == 9
    assert at[1] - at[0] > 0.9
    assert at[-1] - at[1] > 0.02, "all came back at the same moment"


def test_few_downloads_run_at_a_time(server: HubServer) -> None:
    server.fail("storage", itertools.repeat("slow"))
    server.delay = 0.05
    with ThreadPoolExecutor(30) as pool:
        assert all(found == SHARD for found in pool.map(whole, [HubFile(pinned(server), QUICK) for _ in range(30)]))
    assert 2 <= server.most_at_once["storage"] <= hub_pace.DOWNLOADS


def test_a_pause_lies_in_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_pace.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"vit-hub-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    hub_pace.pause(0.01)
    with hub_pace.download_turn():
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_second_pause_interrupts_no_longer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_pace.tempfile, "tempdir", str(tmp_path))
    path, began, change, found = tmp_path / f"vit-hub-{os.getuid()}" / "pause", time.time(), os.utime, []

    def look_and_change(*arguments: Any, **more: Any) -> None:
        found.append(path.stat().st_mtime)
        change(*arguments, **more)

    hub_pace.pause(300)
    monkeypatch.setattr(os, "utime", look_and_change)
    hub_pace.pause(1)
    assert min(*found, path.stat().st_mtime) >= began + 300


STARTER = """
import multiprocessing, sys
from pathlib import Path
import huggingface_hub.file_download
from pipeline.dataset import hub_dataset
from pipeline.dataset.shard_cache import Cache, Wanted

def start(barrier, found):
    barrier.wait()
    source = hub_dataset.pinned("hf://datasets/owner/many")
    cache = Cache(Path(sys.argv[1]) / "shards", 10**8)
    cache.check([1])
    for name, size in hub_dataset.files(source).items():
        with cache.open(Wanted(f"{source}/{name}", size, "")):
            pass
    found.put(len(hub_dataset.files(source)))

fork = multiprocessing.get_context("fork")
barrier, found = fork.Barrier(48), fork.SimpleQueue()
processes = [fork.Process(target=start, args=(barrier, found)) for _ in range(48)]
for process in processes:
    process.start()
print(*(found.get() for _ in processes))
for process in processes:
    process.join()
"""


def test_48_processes_start_at_once(server: HubServer, tmp_path: Path) -> None:
    server.page = 10
    server.add("datasets", "owner/many", {f"train-{number:04d}.tar": bytes(1000) for number in range(20)})
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    line = [sys.executable, "-c", STARTER, str(tmp_path)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["20"] * 48
    assert server.count("api", "/revision/main") == 1
    assert server.count("api", "/tree/") == 2, "two pages"
    assert server.count("resolve", ".tar") == 20, "one download per shard"
    assert server.most_at_once["storage"] <= hub_pace.DOWNLOADS
