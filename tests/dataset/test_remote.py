"""Data sets behind URLs: a server that fails, stalls and truncates, and a cache that several processes share."""

import contextlib
import errno
import fcntl
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import index
from pipeline.core.errors import UserError
from pipeline.core.files import xxh3_128
from pipeline.core.locks import Lock, locked, try_lock
from pipeline.core.retry import GoneError, Patience
from pipeline.dataset import urls
from pipeline.dataset.joined_split import open_split
from pipeline.dataset.shard_cache import Cache, Prefetcher, Wanted
from pipeline.loader.batches import eval_batches
from pipeline.runs import records
from pipeline.runs.folder import METRICS
from tests.dataset.flaky_server import Server
from tests.helpers.jobs import job
from tests.helpers.launch import REPOSITORY
from tests.helpers.ranks import run_ranks
from tests.helpers.waiting import wait_until

FAULTS = ("", "error", "", "cut", "", "", "stall", "wrong", "")
STEPS = 4
QUICK = Patience(seconds=30, pause=0.01, longest_pause=0.05, stall=1.5)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Ten files of 1,000 bytes."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.tar").write_bytes(bytes([number]) * 1000)
    return folder


def wanted(server: Server, number: int) -> Wanted:
    path = server.folder / f"{number}.tar"
    return Wanted(f"{server.url}/{path.name}", 1000, xxh3_128(path))


def used(cache: Cache) -> int:
    """The bytes of all files at one moment: nothing is renamed or reserved while the lock is held."""
    total = 0
    with locked(cache.folder / ".room"):
        for path in cache.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a fetch that failed, or a file that proved damaged
                total += path.stat().st_size
    return total


def hashes(source: object, world: int, workers: int, folder: Path, cache: Path, limit: int) -> list[str]:
    """A line a sample of all ranks, sorted."""
    folder.mkdir()
    command = ("-m", "tests.loader.batch_program", source, folder, cache, limit, workers, STEPS)
    run_ranks(world, command, folder / "log")
    return sorted(line for path in folder.glob("rank-*.txt") for line in path.read_text().splitlines())


def test_ranks_that_share_a_small_cache_of_a_failing_server_get_the_local_batches(digits: Path, tmp_path: Path) -> None:
    tars = [path.stat().st_size for path in digits.glob("train-*.tar")]
    limit = int(2.5 * max(tars))
    assert limit < sum(tars) / 2
    cache, most, done = tmp_path / "cache", [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            if (cache / "shards").is_dir():
                most[0] = max(most[0], used(Cache(cache / "shards", limit)))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Server(digits, FAULTS) as server:
            found = hashes(server.url, 2, 1, tmp_path / "remote", cache, limit)
    finally:
        done.set()
        watcher.join()
    assert len(found) == STEPS * 64
    assert found == hashes(digits, 1, 0, tmp_path / "local", tmp_path / "unused", 1)
    assert {fault for _, fault in server.requests} == set(FAULTS)  # each fault was met
    assert max(tars) <= most[0] <= limit
    left = [path for path in (cache / "shards").iterdir() if not path.name.startswith(".")]
    assert {path.name for path in left} <= {shard.xxh3_128 for shard in open_split(digits, "train").shards}
    assert all(xxh3_128(path) == path.name for path in left)


def test_a_data_set_of_foreign_tars_that_is_indexed_again_is_another_one(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    tar = folder / "train-0.tar"
    tar.write_bytes((digits / "train-00000.tar").read_bytes())
    cache = Cache(tmp_path / "cache" / "shards", 10**7, QUICK)
    seen = []
    with Server(folder) as server:
        for relabelled in (False, False, True):
            os.utime(tar)
            if relabelled:  # in a file of the same size
                with tarfile.open(tar) as members, tar.open("r+b") as file:
                    for member in members:
                        if member.name.endswith(".cls"):
                            file.seek(member.offset_data)
                            label = file.read(1)[0]
                            file.seek(member.offset_data)
                            file.write(bytes([label ^ 1]))
            assert index.main([str(folder), "--workers", "1", "--force"]) == 0
            here, there = open_split(folder, "train"), open_split(server.url, "train", cache=cache)
            assert there.label.tolist() == here.label.tolist()
            assert there.digest == here.digest
            there.read(0)
            seen.append((here.digest, (here.label ^ relabelled).tolist(), len(list(cache.folder.glob("[!.]*")))))
    assert seen[0] == seen[1]
    assert seen[0][1] == seen[2][1]
    assert seen[0][0] != seen[2][0]
    assert [shards for *_, shards in seen] == [1, 1, 2]  # of another version, which may be any other file


def test_a_job_trains_on_a_url_as_on_the_folder(digits: Path, tmp_path: Path) -> None:
    options = ("--data.eval-split", "val", "--train.eval-every", 4, "--data.workers", 1)
    with Server(digits) as server:
        cache = ("--data.cache", tmp_path / "cache", "--data.cache-gb", 0.01)
        command = ("-m", *job(tmp_path / "run", server.url, *options, *cache))
        run_ranks(2, command, tmp_path / "log")
    command = ("-m", *job(tmp_path / "local", digits, *options))
    run_ranks(1, command, tmp_path / "log")
    ours, theirs = (
        [
            (line.step, name, pytest.approx(value, rel=1e-4))
            for line in records.read_lines(run / METRICS)[0]
            for name, value in line.metrics.items()
            if name.startswith(("train/", "eval/"))
        ]
        for run in (tmp_path / "run", tmp_path / "local")
    )
    assert len(ours) > 24
    assert [(step, name) for step, name, _ in ours] == [(step, name) for step, name, _ in theirs]
    assert [value.expected for _, _, value in ours] == [value for _, _, value in theirs]
    assert (tmp_path / "run" / "ledger.txt").read_text() == (tmp_path / "local" / "ledger.txt").read_text()


@pytest.mark.parametrize("lengths", [True, False])
def test_evaluation_and_the_small_files_come_from_the_url_too(digits: Path, tmp_path: Path, lengths: bool) -> None:
    local = open_split(digits, "val")
    with Server(digits, ranges=False, lengths=lengths) as server:
        split = open_split(server.url, "val", cache=Cache(tmp_path / "shards", 10**7, QUICK))
        batches = list(eval_batches(split, image_size=16, batch=50, rank=0, world_size=1, workers=0))
    ours = list(eval_batches(local, image_size=16, batch=50, rank=0, world_size=1, workers=0))
    assert all((a.images_BHWC == b.images_BHWC).all() for a, b in zip(batches, ours, strict=True))
    assert split.sample_keys() == local.sample_keys()
    assert split.digest == local.digest


def test_a_command_may_bring_the_files(digits: Path, tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    second = f"grep -qs $f {counter} && exec cat $f"
    first = f"echo $f >> {counter}; head -c 99 $f; exit 3"  # fails after some bytes
    source = f"pipe:f={digits}/{{}}; {second}; {first}"
    split = open_split(source, "train", cache=Cache(tmp_path / "shards", 10**7, QUICK))
    local = open_split(digits, "train")
    assert all(split.read(row) == local.read(row) for row in range(0, len(local), 50))


def alive(text: bytes) -> list[str]:
    """Processes with ``text`` in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] * (text in path.read_bytes())
        except OSError:
            continue
    return found


def test_a_command_that_stalls_is_ended_with_all_it_started(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"gave up after 1 s: .*no byte in 0\.2 s, after 3 bytes"):
        list(urls.read_blocks(f"pipe:echo ab; tail -f {file} | cat", 9, Patience(1, 0.1, 0.1, 0.2)))
    assert time.monotonic() - began < 10
    wait_until(lambda: not alive(str(file).encode()))  # killed, but dying takes them a moment


def test_a_killed_reader_takes_its_workers_and_their_commands_along(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    command = [sys.executable, "-m", "tests.dataset.piped_reader", f"pipe:echo ab; tail -f {file}; true"]
    with subprocess.Popen(command, cwd=REPOSITORY) as reader:
        wait_until(lambda: alive(f"tail\0-f\0{file}".encode()))
        reader.kill()
    wait_until(lambda: not alive(str(file).encode()))  # the worker's command line is the reader's


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 server's URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield "s3://bucket/digits"
    server.stop()


def test_shards_come_from_s3(digits: Path, tmp_path: Path, bucket: str) -> None:
    import fsspec

    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    for path in digits.iterdir():
        if path.is_file():
            system.put_file(str(path), f"{bucket}/{path.name}")
    split = open_split(bucket, "train", cache=Cache(tmp_path / "shards", 10**7, QUICK))
    local = open_split(digits, "train")
    assert all(split.read(row) == local.read(row) for row in range(0, len(local), 50))
    system.rm_file(f"{bucket}/train-00002.tar")
    with pytest.raises(UserError, match=r"train-00002\.tar' is missing"):
        open_split(bucket, "train", cache=Cache(tmp_path / "others" / "shards", 10**7, QUICK))


def test_what_is_missing_is_named_at_the_start(digits: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache" / "shards", 10**7, QUICK)
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in digits.glob("*"):
        if path.is_file() and path.name != "train-00003.tar":
            os.link(path, folder / path.name)
    with Server(folder) as server:
        with pytest.raises(UserError, match=r"shard 'http://.*/data/train-00003\.tar' is missing or differs"):
            open_split(server.url, "train", cache=cache)
        (folder / "train-00003.tar").write_bytes(b"short")
        with pytest.raises(UserError, match=r"train-00003\.tar' is missing or differs \(has 5 bytes"):
            open_split(server.url, "train", cache=cache)
        with pytest.raises(UserError, match=r"nothing': dataset.json can't be read"):
            open_split(f"{server.url}/nothing", "train", cache=cache)
        with pytest.raises(UserError, match="no room for a shard"):
            open_split(server.url, "val", cache=Cache(tmp_path / "small", 1000, QUICK))
        (tmp_path / "file").touch()
        for place in (tmp_path / "file", tmp_path / "file" / "under"):
            with pytest.raises(UserError, match=f"^data.cache '{place}' can't be written"):
                open_split(server.url, "val", cache=Cache(place / "shards", 10**7, QUICK))
    for source, message in (
        ("https://me:secret@host/data", "login"),
        ("https://host/data?token=secret", "login"),
        ("pipe:cat /data", r"no \{\}"),
        ("nosuch://host/data", "nosuch"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_split(source, "train", cache=cache)
        assert "secret" not in str(error.value)


@pytest.fixture
def copied(digits: Path, tmp_path: Path) -> Path:
    """A dataset whose files may be replaced."""
    return Path(shutil.copytree(digits, tmp_path / "copied"))


@pytest.mark.parametrize("name", ["dataset.json", "index.parquet", "classes.parquet"])
def test_a_file_that_came_wrong_once_is_fetched_again(name: str, copied: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache" / "shards", 10**7, QUICK)
    whole = (copied / name).read_bytes()
    with Server(copied) as server:
        for damaged in (b"<html>log in first</html>", whole[:-9]):
            (copied / name).write_bytes(damaged)
            before = len(server.requests)
            with pytest.raises(UserError, match=f"^'{server.url}/{name}' is damaged"):
                open_split(server.url, "val", cache=cache)
            assert server.requests[before:].count((name, "")) == 2
        (copied / name).write_bytes(whole)
        assert len(open_split(server.url, "val", cache=cache))
        (kept,) = (tmp_path / "cache" / "sets").glob(f"*/{name}")
        kept.write_bytes(whole[:-9])  # by a crash of the node
        assert len(open_split(server.url, "val", cache=cache))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_gone_or_another_is_told_by_one_line(workers: int, copied: Path, tmp_path: Path) -> None:
    with Server(copied) as server:
        split = open_split(server.url, "val", cache=Cache(tmp_path / "cache" / "shards", 10**7, QUICK))
        path = copied / "val-00000.tar"
        path.write_bytes(bytes(path.stat().st_size))
        for reason in ("has xxh3_128 .* upload the dataset's file", "is missing or may not be read .* check address"):
            with pytest.raises(UserError, match=f"^{server.url}/{path.name} {reason}"):
                list(eval_batches(split, image_size=16, batch=50, rank=0, world_size=1, workers=workers))
            path.unlink(missing_ok=True)


def test_a_full_cache_is_named(digits: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = Cache(tmp_path / "cache" / "shards", 10**7, QUICK)
    with Server(digits) as server:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as a full disk or a quota would
            with pytest.raises(
                UserError, match=f"^data.cache '{tmp_path / 'cache'}' can't be written .*File too large"
            ):
                open_split(server.url, "val", cache=cache)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            split = open_split(server.url, "val", cache=cache)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            with pytest.raises(UserError, match=f"^data.cache '{cache.folder}' can't be written .*File too large"):
                split.read(0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_error_shows_a_login(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Server(files, ["error"]) as server:  # 503
        with pytest.raises(OSError, match="503, message=") as error:
            list(urls.read_blocks(f"{server.url}/1.tar", 1000, Patience(seconds=0)))
        assert server.logins == {b64encode(b"me:s3cret").decode()}
    assert not any(login in str(error.value) for login in server.logins)


def test_the_least_recently_used_makes_room(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 3500, QUICK)
    cache.check([1000])
    with Server(files) as server:
        items = [wanted(server, number) for number in range(5)]
        for number in (0, 1, 2, 0):
            with cache.open(items[number]) as file:
                assert os.pread(file, 2000, 0) == bytes([number]) * 1000
            time.sleep(0.01)
        assert len(server.requests) == 3
        with cache.open(items[1]), cache.open(items[3]):  # 1 was used longest ago, but is being read
            assert {path.name for path in cache.folder.iterdir()} == {".room", *(items[n].name for n in (0, 1, 3))}
        assert used(cache) == 3000


def test_what_is_fetched_ahead_leaves_what_others_need(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 3500, QUICK, lease=3.0)
    cache.check([1000])
    with Server(files) as server:
        items = [wanted(server, number) for number in range(6)]
        for item in items[:3]:
            with cache.open(item):
                pass
        assert not cache.fetch_ahead(items[3])  # all are fresh
        ahead = Prefetcher(cache)
        ahead.want([items[1], items[2], items[3], items[4]])  # which keeps 1 and 2 fresh
        limit = time.monotonic() + 60
        while {path.name for path in cache.folder.iterdir()} != {".room", *(item.name for item in items[1:4])}:
            assert time.monotonic() < limit  # meanwhile there may be a .part of what finds no room
            time.sleep(0.01)
        ahead.want([])
        with cache.open(items[5]):  # need, unlike foresight, takes the oldest at once
            pass
        assert used(cache) == 3000


def test_a_file_is_not_renamed_while_the_files_are_counted(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the one that makes room meets it under neither name, and the files grow past the limit."""
    fetched, counting = threading.Event(), threading.Event()
    download = urls.download

    def and_wait(*arguments: Any) -> None:
        download(*arguments)
        fetched.set()
        assert counting.wait(20)

    monkeypatch.setattr(urls, "download", and_wait)
    cache = Cache(tmp_path / "cache", 3500, QUICK)
    cache.check([1000])
    with Server(files) as server:
        item = wanted(server, 0)
        fetching = threading.Thread(target=cache.fetch_ahead, args=(item,))
        fetching.start()
        assert fetched.wait(20)
        with locked(cache.folder / ".room"):
            counting.set()
            time.sleep(0.2)
            assert sorted(path.name for path in cache.folder.iterdir()) == [".room", f"{item.name}.part"]
        fetching.join(20)
        assert (cache.folder / item.name).read_bytes() == bytes(1000)


def test_half_and_wrong_files_are_never_used(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 2500, QUICK)
    cache.check([1000])
    with Server(files, ("wrong",)) as server:
        item = wanted(server, 4)
        with pytest.raises(GoneError, match=f"dataset.json says {item.xxh3_128}"), cache.open(item):
            pass
        assert not (cache.folder / item.name).exists()
        assert len(server.requests) == 2
    with Server(files, ("wrong", "cut", "error", "stall", "")) as server:
        item = wanted(server, 4)
        for left_over in (item, wanted(server, 5), wanted(server, 6)):  # of processes that were killed
            (cache.folder / f"{left_over.name}.part").write_bytes(bytes(1000))
        with cache.open(item) as file:
            assert hashlib.sha256(os.pread(file, 2000, 0)).digest() == hashlib.sha256(b"\4" * 1000).digest()
        assert [fault for _, fault in server.requests] == ["wrong", "cut", "error", "stall", ""]
    assert used(cache) <= 2500


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(digits: Path, tmp_path: Path) -> None:
    local = open_split(digits, "val")
    with Server(digits) as server:
        for damage in ("cut", "zeroed", "no"):
            split = open_split(server.url, "val", cache=Cache(tmp_path / "shards", 10**7, QUICK))
            for path in (tmp_path / "shards").glob("[!.]*"):
                size = path.stat().st_size
                path.write_bytes(bytes(99 if damage == "cut" else size) if damage != "no" else path.read_bytes())
            before = len(server.requests)
            batches = list(eval_batches(split, image_size=16, batch=50, rank=0, world_size=1, workers=0))
            assert [batch.samples_B.tolist() for batch in batches]
            assert split.read(0) == local.read(0)
            assert (len(server.requests) == before) == (damage == "no")


def test_a_damaged_file_without_a_hash_is_suspected(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "train-0.tar").write_bytes((digits / "train-00000.tar").read_bytes())
    assert index.main([str(folder), "--workers", "1"]) == 0
    with Server(folder) as server:
        split = open_split(server.url, "train", cache=Cache(tmp_path / "shards", 10**7, QUICK))
        split.read(0)
        (path,) = (tmp_path / "shards").glob("[!.]*")
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(UserError, match=f"read from the cache: delete '{path}'"):
            list(eval_batches(split, image_size=16, batch=50, rank=0, world_size=1, workers=0))


def test_patience_ends(files: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 2500, Patience(seconds=1.5, pause=0.01, longest_pause=0.05, stall=9.0))
    cache.check([1000])
    with Server(files) as server:  # the first request of a process takes its time for imports
        assert sum(map(len, urls.read_blocks(f"{server.url}/1.tar", 1000, QUICK))) == 1000
    with Server(files, ("error",)) as server:
        with pytest.raises(OSError, match=r"1\.tar: gave up after \d s: .*503"), cache.open(wanted(server, 1)):
            pass
        assert len(server.requests) > 1
        (files / "1.tar").unlink()
        server.faults = iter([""])
        with pytest.raises(GoneError, match=r"1\.tar"), cache.open(Wanted(f"{server.url}/1.tar", 1000, "")):
            pass
    assert [path.name for path in cache.folder.iterdir()] == [".room"]


def test_expired_keys_of_s3_are_no_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "Bad Request")  # as s3fs does where a HEAD request gets a 400

    monkeypatch.setattr(urls, "_ask", refuse)
    with pytest.raises(GoneError, match=r"Bad Request.*: check address and keys"):
        list(urls.read_blocks("s3://bucket/1.tar", 1000, QUICK))


def test_blocks_are_asked_for_again_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "BLOCK", 300)
    content = bytes(range(250)) * 4
    (tmp_path / "a.tar").write_bytes(content)
    with Server(tmp_path, ("", "cut", "", "error", "")) as server:
        blocks = list(urls.read_blocks(f"{server.url}/a.tar", 1000, QUICK))
        assert [len(block) for block in blocks] == [300, 300, 300, 100]
        assert b"".join(blocks) == content
        assert len(server.requests) == 6


def test_a_cache_on_nfs_makes_room(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks as fcntl does (flock(2)): exclusively only what is open for writing, else EBADF."""
    real = fcntl.flock

    def as_nfs_does(descriptor: int, how: int) -> None:
        if how & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", as_nfs_does)
    with Server(files) as server:
        cache = Cache(tmp_path / "cache", 2500, QUICK)
        cache.check([1000])
        for number in (0, 1, 2, 0):
            with cache.open(wanted(server, number)) as file:
                assert os.pread(file, 1000, 0) == bytes([number]) * 1000
        assert len(list((tmp_path / "cache").glob("[!.]*"))) == 2
    with (files / "0.tar").open("rb") as file:  # another user's: it may be in use, so it stays
        assert try_lock(file.fileno(), files / "0.tar") is Lock.UNAVAILABLE
