"""Jobs of a few ranks that something happens to: ways to break them, and what they left."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.runs import records
from pipeline.runs.folder import METRICS, read_status
from tests.helpers.ranks import run_ranks
from tests.slurm.cluster import ENDED, REPO, TWO_RANKS, Cluster

STEPS = 40
# A step takes some 0.1 s; the fault comes at about FAULT_STEP, between two checkpoints
OPTIONS = (
    "--schedule.steps", STEPS, "--train.global-batch", 16, "--train.micro-batch", 8, "--train.log-every", 1,
    "--checkpoint.every", 10, "--data.workers", 1, "--model.image-size", 16,
)  # fmt: skip
FAULT_STEP = 15
# Slower steps, some 0.3 s on two cores: the run is longer than what Slurm takes to miss a slurmd or to end a job at its
# time limit, which it looks at every 30 s
SLOW_STEPS = 400
SLOW = ("--train.global-batch", 128, "--train.micro-batch", 4, "--schedule.steps", SLOW_STEPS)
# Jobs of other sizes, with --nodes
ONE_RANK_PER_NODE = ("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=60")
PROGRAM = "^[^ ]*python[^ ]* (-u )?-m jobs.pretrain tiny --run-dir"  # srun's, or that of torchrun's agent


@dataclass(frozen=True)
class Job:
    id: str
    run: Path
    nodes: list[str]

    @property
    def log(self) -> str:
        return (self.run.parent / f"{self.run.name}.out").read_text()


Fault = Callable[[Cluster, Job], None]


def requeue(cluster: Cluster, job: Job) -> None:
    cluster.run("scontrol", "requeue", job.id)


def kill_task(cluster: Cluster, job: Job) -> None:
    cluster.call("on", job.nodes[1], "pkill", "-KILL", "-f", f"{PROGRAM} {job.run} ")


def stop_task(cluster: Cluster, job: Job) -> None:
    """A rank that hangs: it shows no sign of life, and its connections stay open."""
    cluster.call("on", job.nodes[1], "pkill", "-STOP", "-f", f"{PROGRAM} {job.run} ")


def hang_task(cluster: Cluster, job: Job) -> None:
    """A rank whose main thread sleeps while its heartbeat goes on; the job needs can_hang's variables."""
    cluster.call("on", job.nodes[1], "pkill", "-USR2", "-f", f"{PROGRAM} {job.run} ")


def can_hang(folder: Path) -> dict[str, str]:
    """Variables with which every Python process of a job hangs on SIGUSR2; ``folder`` is for a file of them."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import tests.slurm.hang_on_signal\n")
    return {"PYTHONPATH": f"{folder}:{REPO}"}


def kill_at_every_start(cluster: Cluster, job: Job) -> None:
    """Until the job ends."""
    while cluster.jobs(job.id)[0]["JobState"] not in ENDED:
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


def submit(
    cluster: Cluster,
    digits: Path,
    folder: Path,
    name: str,
    *more: object,
    options: tuple[str, ...] = TWO_RANKS,
    **environment: str,
) -> Job:
    """A pretraining, running. ``more``: fields that win over OPTIONS; ``options``: sbatch's.

    ELASTIC=no unless ``environment`` says otherwise: the losses stay those of the same number of ranks.
    """
    options = (*options, f"--job-name={name}", f"--output={folder}/{name}.out", "--exclusive")
    environment = {"RUNS": str(folder), "IN21K": str(digits), "ELASTIC": "no"} | environment
    id_ = cluster.submit("pretrain_tiny.sh", *OPTIONS, *more, options=options, **environment)
    return Job(id_, folder / name, cluster.wait_running(id_, timeout=120))


def play(
    cluster: Cluster, digits: Path, folder: Path, name: str, faults: Sequence[tuple[int, Fault]]
) -> tuple[Job, str]:
    """Submit, have each fault at its step, wait for the end; the job and its final state."""
    job = submit(cluster, digits, folder, name)
    for step, fault in faults:
        wait_for_step(job, step)
        job = Job(job.id, job.run, cluster.wait_running(job.id, timeout=120))
        fault(cluster, job)
    return job, cluster.wait(job.id, timeout=300)


def check(job: Job, expected: dict[int, float], attempts: int, *, killed: bool = False) -> None:
    """The run is finished with the losses of a run without Slurm, and each start went on from a later checkpoint.

    ``killed``: a step that is killed for a dead rank can be killed once more a minute later, under the number that the
    next attempt's step has too (seen with Slurm 22.05): one attempt more, none of its steps lost. And where the warning
    took the attempt before it up to a checkpoint, it may be killed before it has come to the next.
    """
    began = starts(job.run)
    assert len(began) == attempts or (killed and len(began) == attempts + 1), job.log
    status = read_status(job.run)
    assert status is not None
    assert (status.state, status.step) == ("finished", max(expected))
    assert losses(job.run) == expected, "the losses differ from the run without Slurm"
    steps = list(itertools.pairwise(began))
    assert all(later > earlier or (killed and later == earlier > 0) for earlier, later in steps), began


def steps_again(run: Path) -> list[int]:
    """By attempt, how many of its steps a later attempt did again, as they lay beyond its last checkpoint."""
    lines, _ = records.read_lines(run / METRICS)
    record = records.read_record(run)
    assert record is not None
    limits = records.last_steps(record.attempts)
    again = {attempt.number: 0 for attempt in record.attempts}
    for line in lines:
        again[line.attempt] += "train/loss" in line.metrics and line.step > limits[line.attempt]
    return list(again.values())


def training_nodes(cluster: Cluster, job: Job) -> list[str]:
    """The nodes of the latest attempt, in the order of the ranks; of its job's nodes others may be spare."""
    rows = [line.split("\t") for line in (job.run / "slurm" / "attempts.tsv").read_text().splitlines()]
    return cluster.run("scontrol", "show", "hostnames", [row[5] for row in rows if row[0] == "start"][-1]).split()


def requeues(cluster: Cluster, job: Job) -> int:
    """How often Slurm has started the job anew."""
    return int(cluster.jobs(job.id)[0]["Restarts"])


def seconds_to_the_next_step(job: Job, began: float, attempts: int, timeout: float = 300) -> float:
    """From ``began`` (unix seconds) to the first step of an attempt after the run's first ``attempts``."""
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        lines, _ = records.read_lines(job.run / METRICS)
        later = [line.time for line in lines if line.attempt > attempts and "train/loss" in line.metrics]
        if later:
            return min(later) - began
        time.sleep(0.2)
    raise AssertionError(f"no step of another attempt in {timeout} s:\n{job.log}")


def left_behind(cluster: Cluster, patience: float = 0) -> list[str]:
    """Jobs in the queue and processes of a training on any machine, once ``patience`` seconds didn't end them."""
    limit = time.monotonic() + patience
    while True:
        found = cluster.run("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%i %T %j").splitlines()
        for line in cluster.call("status").splitlines():
            node, state = line.split()
            processes = cluster.call("on", node, "ps", "ax", "-o", "pid,stat,args") if state == "up" else ""
            found += [f"{node}: {process}" for process in processes.splitlines() if "jobs.pretrain" in process]
        if not found or time.monotonic() > limit:
            return found
        time.sleep(1)


def without_slurm(ranks: int, digits: Path, folder: Path, *more: object) -> dict[int, float]:
    """Losses by step of the same ranks in one machine's processes."""
    command = ("-m", "jobs.pretrain", "tiny", "--run-dir", folder / "run", "--data.train", digits, *OPTIONS, *more)
    run_ranks(ranks, command, folder / "logs", timeout=600)
    return losses(folder / "run")


def wait_for_step(job: Job, step: int, timeout: float = 180) -> None:
    limit = time.monotonic() + timeout
    while max(losses(job.run), default=0) < step:
        assert time.monotonic() < limit, f"step {step} was not reached in {timeout} s:\n{job.log}"
        time.sleep(0.05)


def losses(run: Path) -> dict[int, float]:
    """The loss of each step as it was done last."""
    lines, _ = records.read_lines(run / METRICS)
    record = records.read_record(run)
    kept = records.effective(lines, record.attempts if record else [])
    return {line.step: line.metrics["train/loss"] for line in kept if "train/loss" in line.metrics}


def starts(run: Path) -> list[int]:
    """The step that each attempt began at, by Slurm's side of the story; none yet where the job is starting."""
    path = run / "slurm" / "attempts.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.is_file() else []
    return [int(row[3]) for row in rows if row[0] == "start"]
