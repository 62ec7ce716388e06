"""The rarer ways to lose a job, each once, and ten random ones over one run. Minutes: make soak."""

import concurrent.futures
import random
import time
from pathlib import Path

import pytest

from pipeline.rundir import read_status
from tests.ranks import run_ranks
from tests.slurm.cluster import TWO_RANKS, Cluster
from tests.slurm.faults import (
    FAULT_STEP,
    OPTIONS,
    Job,
    Scenario,
    boot_node,
    cancel,
    crash_node,
    kill_at_every_start,
    kill_slurmd,
    kill_task,
    losses,
    play,
    plug,
    preempt,
    requeue,
    start_slurmd,
    starts,
    submit,
    unplug,
    wait_for_step,
    warn,
)
from tests.slurm.test_faults import check, check_no_step_twice

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1200)]

SIDE_BY_SIDE = 3  # jobs of two nodes, on a cluster of eight
SURVIVED = (
    Scenario("requeue", requeue),
    Scenario("preemption", preempt),
    Scenario("node-loss", crash_node, boot_node),
    Scenario("network-cut", unplug, plug),
)
ENDED = (
    Scenario("cancel", cancel, attempts=1, state="CANCELLED"),
    Scenario("no-progress", kill_at_every_start, state="FAILED"),
)
FAULTS = 10
LONG = 400  # steps: longer than the 10 s that Slurm takes to miss a slurmd


@pytest.fixture(scope="module")
def results(cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Job, str]]:
    folder = tmp_path_factory.mktemp("soak")
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        futures = {item.name: pool.submit(play, cluster, digits, folder, item) for item in (*SURVIVED, *ENDED)}
        return {name: future.result() for name, future in futures.items()}


@pytest.mark.parametrize("scenario", SURVIVED, ids=lambda scenario: scenario.name)
def test_the_run_survives(results: dict[str, tuple[Job, str]], reference: dict[int, float], scenario: Scenario) -> None:
    check(scenario, results[scenario.name], reference)
    if scenario.name in ("requeue", "preemption"):
        check_no_step_twice(results[scenario.name][0])


@pytest.fixture(scope="module")
def long_reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step of LONG steps without Slurm."""
    run = tmp_path_factory.mktemp("long") / "run"
    command = ("-m", "jobs.pretrain", "tiny", "--run-dir", run, "--data.train", digits, *OPTIONS)
    run_ranks(2, (*command, "--schedule.steps", LONG), run.parent / "logs", timeout=300)
    return losses(run)


def test_a_dead_slurmd(cluster: Cluster, digits: Path, long_reference: dict[int, float], tmp_path: Path) -> None:
    """Its ranks live on beside those of the next attempt for a while: they must not write."""
    job = submit(cluster, digits, tmp_path, "slurmd-killed", "--schedule.steps", LONG)
    wait_for_step(job, FAULT_STEP)
    kill_slurmd(cluster, job)
    state = cluster.wait(job.id, timeout=400)
    start_slurmd(cluster, job)
    assert state == "COMPLETED", job.log
    assert len(starts(job.run)) == 2, job.log
    assert losses(job.run) == long_reference


def test_scancel_is_final(results: dict[str, tuple[Job, str]], cluster: Cluster) -> None:
    job, state = results["cancel"]
    assert (state, starts(job.run)) == ("CANCELLED", [0]), job.log
    assert cluster.jobs(job.id)[0]["JobState"] == "CANCELLED"  # and stays so


def test_a_run_without_progress_is_given_up(results: dict[str, tuple[Job, str]]) -> None:
    job, state = results["no-progress"]
    assert state == "FAILED", job.log
    assert "attempts made no progress beyond step 0: not starting another" in job.log


def test_a_node_that_fails_twice_is_left(
    cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path
) -> None:
    job = submit(cluster, digits, tmp_path, "bad-node")
    bad = job.nodes[1]
    for step in (FAULT_STEP, FAULT_STEP + 10):
        wait_for_step(job, step)
        assert bad in cluster.wait_running(job.id, timeout=120)
        kill_task(cluster, job)
    assert cluster.wait(job.id, timeout=300) == "COMPLETED", job.log
    assert f"excluded from now on: {bad}" in job.log
    assert bad not in cluster.nodes(job.id)
    assert losses(job.run) == reference


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_checked_by_doctor_then_trained(
    cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path, launcher: str
) -> None:
    options = (*TWO_RANKS, f"--output={tmp_path}/checked.out", "--job-name=checked")
    variables = {"RUNS": str(tmp_path), "IN21K": str(digits), "DOCTOR": "yes", "LAUNCHER": launcher}
    job = cluster.submit("pretrain_tiny.sh", *OPTIONS, options=options, **variables)
    state = cluster.wait(job, timeout=240)
    log = (tmp_path / "checked.out").read_text()
    assert state == "COMPLETED", log
    assert "Is this cluster fit to train?" in log
    assert "2 rank(s) on 2 node(s) met" in log
    assert "fit to train" in log
    assert losses(tmp_path / "checked") == reference


def test_a_killed_task_of_a_shard_array(cluster: Cluster, raw_digits: Path, digits: Path, tmp_path: Path) -> None:
    """The array's merge gives the bytes that one process gives."""
    arguments = ("--name", "digits", "--val-fraction", 0.25, "--samples-per-shard", 256)
    options = ("--array=0-3", "--cpus-per-task=1", f"--output={tmp_path}/%x-%a.out")
    job = cluster.submit("shard.sh", raw_digits, tmp_path / "digits", *arguments, options=options)
    limit = time.monotonic() + 60
    killed = ""
    while not killed and time.monotonic() < limit:
        for record in cluster.jobs(job):
            if record["JobState"] == "RUNNING" and record["ArrayTaskId"] == "2":
                pattern = "^[^ ]*python -m data_prep.shard .*--task 2 "  # srun puts python's whole path there
                found = cluster.call("on", record["NodeList"], "pgrep", "-f", pattern, check=False)
                if found:
                    cluster.call("on", record["NodeList"], "kill", "-KILL", found.splitlines()[0])
                    killed = found
    assert killed
    limit = time.monotonic() + 120
    while not (tmp_path / "digits" / "dataset.json").is_file():
        assert time.monotonic() < limit, "\n".join(path.read_text() for path in tmp_path.glob("*.out"))
        time.sleep(0.5)
    assert any("requeueing" in path.read_text() for path in tmp_path.glob("*.out"))
    for tar in sorted(digits.glob("*.tar")):
        assert tar.read_bytes() == (tmp_path / "digits" / tar.name).read_bytes()


def test_ten_random_faults(cluster: Cluster, digits: Path, long_reference: dict[int, float], tmp_path: Path) -> None:
    """One run through FAULTS faults, drawn with a fixed seed; its losses are those of a run without any."""
    more = ("--schedule.steps", LONG)
    began = time.monotonic()
    choice = random.Random(1)
    job = submit(cluster, digits, tmp_path, "ten-faults", *more)
    wait_for_step(job, 1)
    done: list[str] = []
    for _ in range(FAULTS):
        before = len(starts(job.run))
        wait_for_step(job, starts(job.run)[-1] + choice.randint(11, 20))  # beyond a checkpoint
        job = Job(job.id, job.run, cluster.wait_running(job.id, timeout=180))
        fault = choice.choice((requeue, warn, kill_task, preempt, crash_node, kill_slurmd))
        fault(cluster, job)
        done.append(fault.__name__)
        limit = time.monotonic() + 180
        while len(starts(job.run)) == before:
            assert time.monotonic() < limit, f"not started again after {done}:\n{job.log}"
            time.sleep(0.5)
        if fault is crash_node:
            boot_node(cluster, job)
        if fault is kill_slurmd:
            start_slurmd(cluster, job)
    assert cluster.wait(job.id, timeout=300) == "COMPLETED", job.log
    status = read_status(job.run)
    assert status is not None
    assert (status.state, status.step) == ("finished", LONG)
    assert losses(job.run) == long_reference
    assert cluster.run("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%i %T %j") == ""
    again = (job.run / "metrics.jsonl").read_text().count('"train/loss"') - LONG
    print(f"{', '.join(done)}: {len(starts(job.run))} starts, {again} of {LONG} steps again, in", end=" ")
    print(f"{time.monotonic() - began:.0f} s")
