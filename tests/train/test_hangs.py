"""Real ranks of which one stops, hangs, or is only slow: the first two are named in seconds, the last is left alone."""

import pickle
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from pipeline.runs.folder import COLLECTIVES, SLURM_FAILED
from tests.helpers.jobs import job
from tests.helpers.ranks import Ranks

HOST = socket.gethostname()
LIMIT = 3  # seconds


def faulty(fault: str, rank: int, step: int, run: Path, data: Path, *options: object, steps: int = 100_000) -> tuple:
    command = job(run, data, "--train.hang-timeout", LIMIT, *options, steps=steps)
    return ("-m", "tests.train.faulty", fault, rank, step, *command)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_rank_that_hangs_in_a_step_is_named_with_its_stack(digits: Path, tmp_path: Path, victim: int) -> None:
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    with Ranks(3, faulty("hang", victim, 3, run, digits, "--train.global-batch", 24), tmp_path / "log") as ranks:
        ranks.wait_for("step 2/", 120)
        finished = ranks.wait(100)
        survivors = [rank for rank in range(3) if rank != victim]
        assert [rank.code for rank in finished] == [1, 1, 1]
        assert not [child for process in ranks.processes for child in _children(process.pid)]
    for rank in finished:
        assert f"error: rank {victim} on {HOST} has made no progress for" in rank.output
        assert "(step 3, in the forward pass)" in rank.output
    assert f"rank {victim} on {HOST} is here:" in finished[0].output
    assert "in hook\n    time.sleep(3600)" in finished[0].output
    assert "Current thread" in finished[victim].output, "all threads of the rank itself"
    assert (run / SLURM_FAILED).read_text() == f"{HOST} {victim} 1\n", "slurm/launch.sh avoids nodes that fail twice"
    last = {}
    for path in (run / COLLECTIVES).iterdir():
        entries = pickle.loads(path.read_bytes())["entries"]
        last[path.name] = entries[-1]["profiling_name"], len(entries)
    assert set(last) == {"rank-0", "rank-1", "rank-2"}
    assert len({last[f"rank-{rank}"] for rank in survivors}) == 1
    assert last[f"rank-{victim}"][1] < last[f"rank-{survivors[0]}"][1], "the one that is missing in the collective"


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_stopped_rank_is_named_though_no_collective_fails(digits: Path, tmp_path: Path, victim: int) -> None:
    """As a node that has lost its network, or is frozen: its connections stay open."""
    with Ranks(2, faulty("none", 0, 0, tmp_path / "run", digits), tmp_path / "log") as ranks:
        ranks.wait_for("step 3/", 120)
        ranks.signal(victim, signal.SIGSTOP)
        survivor = ranks.processes[1 - victim]
        survivor.join(100)
        assert survivor.exitcode == 1, ranks.output()
        output = ranks.logs[1 - victim].read_text()
    assert f"rank {victim} on {HOST} is gone: no {'answer' if victim == 0 else 'sign of life'} since " in output
    assert "exits; a restart resumes from the last checkpoint" in output


@pytest.mark.soak  # 16 s of waiting
def test_a_job_that_is_suspended_and_resumed_continues(digits: Path, tmp_path: Path) -> None:
    """As by scontrol suspend: the pause is twice the limit, and each rank's own."""
    with Ranks(2, faulty("none", 0, 0, tmp_path / "run", digits), tmp_path / "log") as ranks:
        ranks.wait_for("step 3/", 120)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in (1, 0):
                ranks.signal(rank, number)
            time.sleep(2 * LIMIT if number == signal.SIGSTOP else LIMIT + 2)
        ranks.signal(0, signal.SIGUSR1)
        finished = ranks.wait(30)
    assert [rank.code for rank in finished] == [75, 75], ranks.output()


@pytest.mark.soak  # 13 s of waiting
def test_a_loader_that_stalls_is_warned_of_and_ends_the_job_later(digits: Path, tmp_path: Path) -> None:
    command = faulty("none", 0, 0, tmp_path / "run", digits, "--data.workers", 1)
    with Ranks(2, command, tmp_path / "log") as ranks:
        ranks.wait_for("step 3/", 120)
        (worker,) = (child for child in _children(ranks.processes[1].pid) if "resource_tracker" not in child.name())
        worker.send_signal(signal.SIGSTOP)
        stalled = time.monotonic()
        ranks.wait_for(f"warning: rank 1 on {HOST} has made no progress for", 15)
        finished = ranks.wait(25)
        assert time.monotonic() - stalled > 2 * LIMIT
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert [rank.code for rank in finished] == [1, 1]
    assert "waiting for its data loader (a loader stall)" in finished[0].output
    assert "in fetch" in finished[0].output, "the stack"


@pytest.mark.parametrize("fault", ["pause", pytest.param("pause_evaluation", marks=pytest.mark.soak)])
def test_a_slow_first_step_or_evaluation_is_no_hang(digits: Path, tmp_path: Path, fault: str) -> None:
    """The pause is twice the limit: as a compilation on one rank, or a slow disk."""
    options = ("--data.eval-split", "val", "--train.eval-batch", 64)
    with Ranks(2, faulty(fault, 1, 1, tmp_path / "run", digits, *options, steps=3), tmp_path / "log") as ranks:
        finished = ranks.wait(120)
    assert [rank.code for rank in finished] == [0, 0], finished[0].output
    assert f"warning: rank 1 on {HOST} has made no progress for" in finished[0].output


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
