"""Worker processes leave with their parent, and their sockets have paths that fit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.jpegs import encode
from tests.helpers.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
WORKERS = """
import multiprocessing, os, signal, sys, time
from pipeline.core import processes

def work(ready):
    processes.start_worker([signal.SIGTERM])
    ready.put(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    processes.short_socket_paths()
    context = multiprocessing.get_context(sys.argv[1])
    ready = context.SimpleQueue()
    for _ in range(3):
        context.Process(target=work, args=(ready,), daemon=True).start()
    print(*(ready.get() for _ in range(3)), flush=True)
    time.sleep(60)
"""
SOCKET = """
from multiprocessing.connection import Listener
from pipeline.core import processes
processes.short_socket_paths()
with Listener(family="AF_UNIX"):
    print("listening")
"""


def long_folder(tmp_path: Path) -> str:
    """A job's TMPDIR as sites make it: 80 characters and more."""
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    return str(folder)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_leave_with_a_killed_parent(tmp_path: Path, method: str) -> None:
    """Also with a TMPDIR too long for a socket, and though they ignore SIGTERM."""
    (tmp_path / "program.py").write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": long_folder(tmp_path)}
    command = [sys.executable, str(tmp_path / "program.py"), method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 3
        os.kill(workers[0], signal.SIGTERM)
        process.kill()
    wait_until(lambda: not any(runs(pid) for pid in workers))


def runs(pid: int) -> bool:
    """Whether the process is there and no zombie, which a container's first process may leave."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_sockets_of_multiprocessing_fit_below_a_long_tmpdir(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SOCKET],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": long_folder(tmp_path)},
    )
    assert done.stdout == "listening\n", done.stderr


def test_a_dataset_is_made_below_a_long_tmpdir(tmp_path: Path) -> None:
    """Its workers come from a fork server, which listens on a socket; it ended in "AF_UNIX path too long"."""
    for wnid in ("a", "b"):
        (tmp_path / "raw" / wnid).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "raw" / wnid / f"{number}.jpg").write_bytes(encode(16, 16, seed=number))
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.shard", tmp_path / "raw", tmp_path / "out", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": long_folder(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "dataset.json").is_file()
