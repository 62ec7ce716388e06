"""Jobs of two ranks that something happens to: ways to break them, and what they left."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import spool
from tests.slurm.cluster import TWO_RANKS, Cluster

STEPS = 40
# A step takes some 0.1 s; the fault comes at about FAULT_STEP, between two checkpoints
OPTIONS = (
    "--schedule.steps", STEPS, "--train.global-batch", 16, "--train.micro-batch", 8, "--train.log-every", 1,
    "--checkpoint.every", 10, "--data.workers", 1, "--model.image-size", 16,
)  # fmt: skip
FAULT_STEP = 15
PROGRAM = "^python -m jobs.pretrain tiny --run-dir"


@dataclass(frozen=True)
class Job:
    id: str
    run: Path
    nodes: list[str]

    @property
    def log(self) -> str:
        return (self.run.parent / f"{self.run.name}.out").read_text()


@dataclass(frozen=True)
class Scenario:
    """One job that something happens to."""

    name: str
    fault: Callable[[Cluster, Job], None]
    repair: Callable[[Cluster, Job], None] | None = None  # after the job's end
    attempts: int = 2
    state: str = "COMPLETED"


def nothing(cluster: Cluster, job: Job) -> None:
    pass


def requeue(cluster: Cluster, job: Job) -> None:
    cluster.run("scontrol", "requeue", job.id)


def kill_task(cluster: Cluster, job: Job) -> None:
    cluster.call("on", job.nodes[1], "pkill", "-KILL", "-f", f"{PROGRAM} {job.run} ")


def kill_at_every_start(cluster: Cluster, job: Job) -> None:
    """Until the job ends."""
    while cluster.jobs(job.id)[0]["JobState"] in ("PENDING", "RUNNING", "COMPLETING"):
        for node in cluster.nodes(job.id)[:1]:
            cluster.call("on", node, "pkill", "-KILL", "-f", f"{PROGRAM} {job.run} ", check=False)
        time.sleep(1)


def warn(cluster: Cluster, job: Job) -> None:
    """What Slurm does before the time limit, by --signal=B:USR1@300."""
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)


def crash_node(cluster: Cluster, job: Job) -> None:
    cluster.call("crash", job.nodes[1])


def boot_node(cluster: Cluster, job: Job) -> None:
    cluster.call("boot", job.nodes[1])


def kill_slurmd(cluster: Cluster, job: Job) -> None:
    cluster.call("kill-slurmd", job.nodes[1])


def start_slurmd(cluster: Cluster, job: Job) -> None:
    cluster.call("start-slurmd", job.nodes[1])


def unplug(cluster: Cluster, job: Job) -> None:
    cluster.call("unplug", job.nodes[1])


def plug(cluster: Cluster, job: Job) -> None:
    cluster.call("plug", job.nodes[1])


def preempt(cluster: Cluster, job: Job) -> None:
    """A job of a higher partition takes the nodes for a moment."""
    nodes = ",".join(job.nodes)
    options = ("--partition=urgent", "--exclusive", "--mem=0", f"--nodelist={nodes}", "--nodes=2", "--time=1")
    cluster.run("sbatch", *options, "--output=/dev/null", "--wrap=sleep 3")


def cancel(cluster: Cluster, job: Job) -> None:
    cluster.run("scancel", job.id)


def submit(cluster: Cluster, digits: Path, folder: Path, name: str, *more: object) -> Job:
    """A pretraining of two nodes, running. ``more``: fields that win over OPTIONS."""
    options = (*TWO_RANKS, f"--job-name={name}", f"--output={folder}/{name}.out", "--exclusive")
    id_ = cluster.submit("pretrain_tiny.sh", *OPTIONS, *more, options=options, RUNS=str(folder), IN21K=str(digits))
    return Job(id_, folder / name, cluster.wait_running(id_, timeout=120))


def play(cluster: Cluster, digits: Path, folder: Path, scenario: Scenario) -> tuple[Job, str]:
    """Submit, break at FAULT_STEP, wait for the end; the job and its final state."""
    job = submit(cluster, digits, folder, scenario.name)
    if scenario.fault is not kill_at_every_start:
        wait_for_step(job, FAULT_STEP)
    scenario.fault(cluster, job)
    state = cluster.wait(job.id, timeout=300)
    if scenario.repair:
        scenario.repair(cluster, job)
    return job, state


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
    """The step that each attempt began at, by Slurm's side of the story; none yet where the job is starting."""
    path = run / "slurm" / "attempts.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.is_file() else []
    return [int(row[3]) for row in rows if row[0] == "start"]
