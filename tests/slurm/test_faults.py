"""Losing a job ends with the run finished, and the very losses of a run without Slurm.

The most frequent ways, side by side, as most of their time is spent waiting for Slurm; the others are in test_soak.py.
"""

import concurrent.futures
import itertools
from pathlib import Path

import pytest

from pipeline import spool
from pipeline.rundir import read_status
from tests.slurm.cluster import Cluster
from tests.slurm.faults import STEPS, Job, Scenario, kill_task, losses, nothing, play, starts, submit, warn

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

SCENARIOS = (Scenario("nothing", nothing, attempts=1), Scenario("kill-task", kill_task), Scenario("warning", warn))


@pytest.fixture(scope="module")
def results(cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Job, str]]:
    folder = tmp_path_factory.mktemp("faults")
    with concurrent.futures.ThreadPoolExecutor(len(SCENARIOS)) as pool:
        futures = {item.name: pool.submit(play, cluster, digits, folder, item) for item in SCENARIOS}
        return {name: future.result() for name, future in futures.items()}


def check(scenario: Scenario, result: tuple[Job, str], reference: dict[int, float]) -> None:
    job, state = result
    assert state == scenario.state, job.log
    began = starts(job.run)
    # A step killed for a dead rank can be killed once more a minute later, under the number that the next attempt's
    # step has too (seen with Slurm 22.05): one attempt more, none of its steps lost
    assert len(began) == scenario.attempts or (scenario.name == "kill-task" and len(began) == 3), job.log
    status = read_status(job.run)
    assert status is not None
    assert (status.state, status.step) == ("finished", STEPS)
    assert losses(job.run) == reference, "the losses differ from the run without Slurm"
    # No step is lost beyond the last checkpoint (and none at all where the ranks were asked to stop)
    assert all(later > earlier for earlier, later in itertools.pairwise(began)), began


def check_no_step_twice(job: Job) -> None:
    lines, _ = spool.read_lines(job.run / spool.METRICS)
    steps = [line.step for line in lines if "train/loss" in line.metrics]
    assert steps == sorted(set(steps)), f"did steps twice: {steps}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_run_survives(results: dict[str, tuple[Job, str]], reference: dict[int, float], scenario: Scenario) -> None:
    check(scenario, results[scenario.name], reference)


def test_a_warned_run_does_no_step_twice(results: dict[str, tuple[Job, str]]) -> None:
    check_no_step_twice(results["warning"][0])


def test_a_finished_run_is_not_started_again(
    results: dict[str, tuple[Job, str]], cluster: Cluster, digits: Path
) -> None:
    job, _ = results["nothing"]
    again = submit(cluster, digits, job.run.parent, "nothing")
    assert cluster.wait(again.id, timeout=30) == "COMPLETED"
    assert "is finished: nothing to do" in again.log
    assert starts(job.run) == [0]


def test_nothing_is_left_behind(results: dict[str, tuple[Job, str]], cluster: Cluster) -> None:
    assert results
    assert cluster.run("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%i %T %j") == ""
    assert "jobs.pretrain" not in cluster.call("on", "node1", "ps", "ax", "-o", "args")
