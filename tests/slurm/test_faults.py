"""Each way to lose a job ends with the run finished, and the very losses of a run that nothing happened to.

Some scenarios run side by side, as most of their time is spent waiting for Slurm.
"""

import concurrent.futures
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import spool
from pipeline.rundir import read_status
from tests.ranks import run_ranks
from tests.slurm.cluster import TWO_RANKS, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

STEPS = 60
# A step takes some 0.1 s; the fault comes at about FAULT_STEP, between two checkpoints
OPTIONS = (
    "--schedule.steps", STEPS, "--train.global-batch", 16, "--train.micro-batch", 8, "--train.log-every", 1,
    "--checkpoint.every", 10, "--data.workers", 1, "--model.image-size", 16,
)  # fmt: skip
FAULT_STEP = 15
SIDE_BY_SIDE = 3  # jobs of two nodes, on a cluster of eight


@dataclass(frozen=True)
class Scenario:
    """One job that something happens to."""

    name: str
    fault: Callable[[Cluster, "Job"], None]
    attempts: int = 2
    state: str = "COMPLETED"


@dataclass(frozen=True)
class Job:
    id: str
    run: Path
    nodes: list[str]

    @property
    def log(self) -> str:
        return (self.run.parent / f"{self.run.name}.out").read_text()


def nothing(cluster: Cluster, job: Job) -> None:
    pass


def requeue(cluster: Cluster, job: Job) -> None:
    cluster.run("scontrol", "requeue", job.id)


def kill_task(cluster: Cluster, job: Job) -> None:
    cluster.call("on", job.nodes[1], "pkill", "-KILL", "-f", f"^python -m jobs.pretrain tiny --run-dir {job.run} ")


def warn(cluster: Cluster, job: Job) -> None:
    """What Slurm does before the time limit, by --signal=B:USR1@300."""
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)


def crash_node(cluster: Cluster, job: Job) -> None:
    cluster.call("crash", job.nodes[1])


def preempt(cluster: Cluster, job: Job) -> None:
    """A job of a higher partition takes the nodes for a moment."""
    nodes = ",".join(job.nodes)
    options = ("--partition=urgent", "--exclusive", "--mem=0", f"--nodelist={nodes}", "--nodes=2", "--time=1")
    cluster.run("sbatch", *options, "--output=/dev/null", "--wrap=sleep 3")


def cancel(cluster: Cluster, job: Job) -> None:
    cluster.run("scancel", job.id)


SCENARIOS = (
    Scenario("nothing", nothing, attempts=1),
    Scenario("requeue", requeue),
    Scenario("kill-task", kill_task),
    Scenario("node-loss", crash_node),
    Scenario("preemption", preempt),
    Scenario("warning", warn),
    Scenario("cancel", cancel, attempts=1, state="CANCELLED"),
)


@pytest.fixture(scope="module")
def reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step of the same ranks without Slurm."""
    run = tmp_path_factory.mktemp("reference") / "run"
    command = ("-m", "jobs.pretrain", "tiny", "--run-dir", run, "--data.train", digits, *OPTIONS)
    run_ranks(2, command, run.parent / "logs", VIT_MLFLOW="off")
    return losses(run)


@pytest.fixture(scope="module")
def results(cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Job, str]]:
    folder = tmp_path_factory.mktemp("faults")
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = {item.name: pool.submit(play, cluster, digits, folder, item) for item in SCENARIOS}
        return {name: future.result() for name, future in futures.items()}


def play(cluster: Cluster, digits: Path, folder: Path, scenario: Scenario) -> tuple[Job, str]:
    """Submit, break at FAULT_STEP, wait for the end; the job and its final state."""
    run = folder / scenario.name
    options = (*TWO_RANKS, f"--job-name={scenario.name}", f"--output={folder}/{scenario.name}.out", "--exclusive")
    id_ = cluster.submit("pretrain_tiny.sh", *OPTIONS, options=options, RUNS=str(folder), IN21K=str(digits))
    job = Job(id_, run, cluster.wait_running(id_, timeout=120))
    wait_for_step(job, FAULT_STEP)
    scenario.fault(cluster, job)
    return job, cluster.wait(id_, timeout=300)


def wait_for_step(job: Job, step: int, timeout: float = 180) -> None:
    limit = time.monotonic() + timeout
    while max(losses(job.run), default=0) < step:
        assert time.monotonic() < limit, f"step {step} was not reached in {timeout} s:\n{job.log}"
        time.sleep(0.05)


def losses(run: Path) -> dict[int, float]:
    """The loss of each step as it was done last."""
    lines, _ = spool.read_lines(run / spool.METRICS)
    record = spool.read_record(run)
    kept = spool.effective(lines, record.attempts if record else [])
    return {line.step: line.metrics["train/loss"] for line in kept if "train/loss" in line.metrics}


def starts(run: Path) -> list[int]:
    """The step that each attempt began at, by Slurm's side of the story."""
    rows = [line.split("\t") for line in (run / "slurm" / "attempts.tsv").read_text().splitlines()]
    return [int(row[3]) for row in rows if row[0] == "start"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_run_survives(
    results: dict[str, tuple[Job, str]], reference: dict[int, float], scenario: Scenario, cluster: Cluster
) -> None:
    job, state = results[scenario.name]
    assert state == scenario.state, job.log
    began = starts(job.run)
    # A step killed for a dead rank can be killed once more a minute later, under the number that the next attempt's
    # step has too (seen with Slurm 22.05): one attempt more, none of its steps lost
    assert len(began) == scenario.attempts or (scenario.name == "kill-task" and len(began) == 3), job.log
    if scenario.state == "CANCELLED":
        time.sleep(1)
        assert cluster.jobs(job.id)[0]["JobState"] == "CANCELLED"  # and stays so
        return
    status = read_status(job.run)
    assert status is not None
    assert (status.state, status.step) == ("finished", STEPS)
    assert losses(job.run) == reference, "the losses differ from the run without Slurm"
    # No step is lost beyond the last checkpoint (and none at all where the ranks were asked to stop)
    assert all(later > earlier for earlier, later in itertools.pairwise(began)), began


def test_a_requeued_run_loses_no_step_where_it_could_save(results: dict[str, tuple[Job, str]]) -> None:
    for name in ("requeue", "preemption", "warning"):
        job, _ = results[name]
        lines, _ = spool.read_lines(job.run / spool.METRICS)
        steps = [line.step for line in lines if "train/loss" in line.metrics]
        assert steps == sorted(set(steps)), f"{name} did steps twice: {steps}"


def test_nothing_is_left_behind(results: dict[str, tuple[Job, str]], cluster: Cluster) -> None:
    assert results
    assert cluster.run("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%i %T %j") == ""
    assert "jobs.pretrain" not in cluster.call("on", "node1", "ps", "ax", "-o", "args")
