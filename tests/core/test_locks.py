"""Locks between processes, and file systems that have none."""

import errno
import fcntl
import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from data_prep.work_folder import alone
from pipeline.core import locks
from pipeline.core.errors import UserError
from pipeline.core.locks import Lock, locked, try_lock, wait_for_lock
from pipeline.core.retry import Patience
from pipeline.dataset.shard_cache import Cache, Wanted
from tests.dataset.flaky_server import Server

WITHOUT_LOCKS = ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL"]
QUICK = Patience(seconds=30.0, pause=0.01, longest_pause=0.05, stall=5.0)


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Let flock answer as on a file system without locks; the requests that it saw."""
    asked: list[int] = []

    def flock(_: object, how: int) -> None:
        asked.append(how)
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_warned", set())
    return asked


def test_a_lock_excludes_others_and_ends_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert try_lock(first.fileno(), path, shared=True) is Lock.HELD
        assert try_lock(second.fileno(), path, shared=True) is Lock.HELD
        assert try_lock(second.fileno(), path) is Lock.TAKEN
        first.close()
        assert try_lock(second.fileno(), path) is Lock.HELD  # converted


def test_waiting_ends_when_the_lock_is_free(tmp_path: Path) -> None:
    held, path, order = threading.Event(), tmp_path / "lock", []

    def hold() -> None:
        with locked(path):
            held.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with locked(path) as lock:
        order.append("second")
        assert lock is Lock.HELD
    thread.join()
    assert order == ["first", "second"]


def test_waiting_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(locks, "SAID_AFTER", 0.0)
    caplog.set_level(logging.INFO)
    said = r"lock' has been locked by another process for 0\.1 s: end that process"
    with (
        locked(tmp_path / "lock"),
        pytest.raises(UserError, match=said),
        locked(tmp_path / "lock", seconds=0.1),
    ):
        raise AssertionError
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process that holds the lock of {str(tmp_path / 'lock')!r}"
    ]


@pytest.mark.parametrize("name", WITHOUT_LOCKS)
def test_a_file_system_without_locks_stops_nothing_and_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    asked = refuse(monkeypatch, name)
    for file in ("a", "b"):
        with locked(tmp_path / file) as lock:
            assert lock is Lock.UNAVAILABLE
    with alone(tmp_path / "out", None):
        pass
    assert asked
    assert all(how & fcntl.LOCK_NB for how in asked), "a blocking flock may wait without an end"
    (record,) = caplog.records
    said = os.strerror(getattr(errno, name))
    assert record.getMessage() == f"{str(tmp_path / 'a')!r} can't be locked ({said}): start one process at a time there"


def test_a_read_only_descriptor_on_nfs_is_no_reason_to_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, "EBADF")
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("rb") as file:
        assert wait_for_lock(file.fileno(), tmp_path / "file") is Lock.UNAVAILABLE
    assert not caplog.records


def test_a_cache_without_locks_fetches_and_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "ENOLCK")
    files = tmp_path / "files"
    files.mkdir()
    for number in range(4):
        (files / f"{number}.tar").write_bytes(bytes([number]) * 1000)
    cache = Cache(tmp_path / "cache", 2500, QUICK)
    cache.check([1000])
    with Server(files) as server:
        for number in (0, 1, 2, 3, 0):
            with cache.open(Wanted(f"{server.url}/{number}.tar", 1000, "")) as file:
                assert os.pread(file, 1000, 0) == bytes([number]) * 1000
    assert len(list(cache.folder.glob("[!.]*"))) == 2


def test_a_cache_whose_files_are_all_in_use_says_so(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(bytes(1000))
    (tmp_path / "1.tar").write_bytes(bytes(1000))
    cache = Cache(tmp_path / "cache", 1500, Patience(seconds=0.2, pause=0.01, longest_pause=0.05, stall=5.0))
    cache.check([1000])
    with (
        Server(tmp_path) as server,
        cache.open(Wanted(f"{server.url}/0.tar", 1000, "")),
        pytest.raises(UserError, match="has no room: its files are being read"),
        cache.open(Wanted(f"{server.url}/1.tar", 1000, "")),
    ):
        raise AssertionError


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ready = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with locked(path):
            ready.set()
            time.sleep(60)

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    assert ready.wait(10)
    holder.kill()
    holder.join(10)
    with locked(path, seconds=60):
        pass
