"""Losing a job ends with the run finished, and the very losses of a run without Slurm.

The two most frequent ways, in one job: the warning before a time limit, which requeues it, then a dead rank, after
which the ranks start again in the same job. The others: test_ways.py, test_restarts.py.
"""

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.faults import (
    FAULT_STEP,
    Job,
    check,
    kill_task,
    left_behind,
    play,
    requeues,
    starts,
    steps_again,
    submit,
    warn,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def played(
    cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[concurrent.futures.Future[tuple[Job, str]]]:
    """Runs while the losses without Slurm are made: most of the time is Slurm's waiting and Python's imports."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        folder = tmp_path_factory.mktemp("faults")
        faults = ((FAULT_STEP, warn), (FAULT_STEP + 10, kill_task))
        yield pool.submit(play, cluster, digits, folder, "warned-and-killed", faults)


def test_a_warned_and_then_killed_run_ends_as_if_nothing_had_been(
    played: concurrent.futures.Future[tuple[Job, str]], cluster: Cluster, reference: dict[int, float]
) -> None:
    job, state = played.result(300)
    assert state == "COMPLETED", job.log
    check(job, reference, attempts=3, killed=True)
    assert requeues(cluster, job) == 1, "the dead rank requeued the job, too"
    assert steps_again(job.run)[0] == 0, "a warned attempt loses nothing: the next goes on at the next step"


def test_a_finished_run_is_not_started_again(
    played: concurrent.futures.Future[tuple[Job, str]], cluster: Cluster, digits: Path
) -> None:
    job, _ = played.result(300)
    before = starts(job.run)
    again = submit(cluster, digits, job.run.parent, job.run.name)
    assert cluster.wait(again.id, timeout=200) == "COMPLETED"
    assert "is finished: nothing to do" in again.log
    assert starts(job.run) == before


def test_nothing_is_left_behind(played: concurrent.futures.Future[tuple[Job, str]], cluster: Cluster) -> None:
    assert played.result(300)
    assert left_behind(cluster) == []
