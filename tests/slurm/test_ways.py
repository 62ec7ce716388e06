"""The rarer ways to lose a job, each once, and jobs of other sizes. Minutes: make soak."""

import concurrent.futures
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.faults import (
    FAULT_STEP,
    OPTIONS,
    SLOW,
    SLOW_STEPS,
    Fault,
    Job,
    boot_node,
    cancel,
    check,
    crash_node,
    kill_at_every_start,
    kill_slurmd,
    kill_task,
    left_behind,
    losses,
    play,
    plug,
    preempt,
    requeue,
    start_slurmd,
    starts,
    steps_again,
    submit,
    unplug,
    wait_for_step,
    without_slurm,
)

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1200)]

SIDE_BY_SIDE = 3  # jobs of two nodes, on a cluster of eight
FAULTS: dict[str, tuple[int, Fault]] = {
    "requeue": (FAULT_STEP, requeue),
    "preemption": (FAULT_STEP, preempt),
    "node-loss": (FAULT_STEP, crash_node),
    "network-cut": (FAULT_STEP, unplug),
    "cancel": (FAULT_STEP, cancel),
    "no-progress": (0, kill_at_every_start),
}
REPAIRS: dict[str, Fault] = {"node-loss": boot_node, "network-cut": plug}
Played = dict[str, tuple[Job, str]]
LONG = 400  # steps, for two losses of a node


@pytest.fixture(scope="module")
def played(cluster: Cluster, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("ways")

    def one(name: str) -> tuple[Job, str]:
        job, state = play(cluster, digits, folder, name, [FAULTS[name]])
        if name in REPAIRS:
            REPAIRS[name](cluster, job)
        return job, state

    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return dict(zip(FAULTS, pool.map(one, FAULTS), strict=True))


@pytest.mark.parametrize("name", ["requeue", "preemption", "node-loss", "network-cut"])
def test_the_run_survives(played: Played, reference: dict[int, float], name: str) -> None:
    job, state = played[name]
    assert state == "COMPLETED", job.log
    check(job, reference, attempts=2)
    again = steps_again(job.run)
    print(f"{name}: starts {starts(job.run)}, steps done again {sum(again)}")
    if name in ("requeue", "preemption"):
        assert sum(again) == 0


def test_scancel_is_final(played: Played, cluster: Cluster) -> None:
    job, state = played["cancel"]
    assert (state, starts(job.run)) == ("CANCELLED", [0]), job.log
    assert cluster.jobs(job.id)[0]["JobState"] == "CANCELLED"  # and stays so


def test_a_run_without_progress_is_given_up(played: Played, cluster: Cluster) -> None:
    job, state = played["no-progress"]
    assert state == "FAILED", job.log
    # Two on the same nodes, and one after leaving the node on which both failed, which may have been the reason
    assert starts(job.run) == [0, 0, 0]
    assert "2 attempts made no progress beyond step 0: not starting another" in job.log
    assert cluster.jobs(job.id)[0]["JobState"] == "FAILED"


def test_nothing_is_left_behind(played: Played, cluster: Cluster) -> None:
    assert played
    assert left_behind(cluster, patience=90) == []


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


def test_a_node_that_crashes_twice_is_left(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    """Power loss, boot, the same node again, power loss: Slurm requeues, we leave the node."""
    job = submit(cluster, digits, tmp_path, "crashing-node", "--schedule.steps", LONG)
    bad, keep = job.nodes[1], job.nodes[0]
    others = ",".join(f"node{number}" for number in range(1, 9) if f"node{number}" not in (bad, keep))
    cluster.run("scontrol", "update", f"NodeName={others}", "State=DRAIN", "Reason=test")  # so that it gets bad again
    for step in (FAULT_STEP, FAULT_STEP + 15):
        wait_for_step(job, step)
        before = len(starts(job.run))
        job = Job(job.id, job.run, cluster.wait_running(job.id, timeout=120))
        assert bad in job.nodes
        cluster.call("crash", bad)
        time.sleep(20)  # Slurm has seen it: SlurmdTimeout is 10 s
        cluster.call("boot", bad)
        if step != FAULT_STEP:
            cluster.run("scontrol", "update", f"NodeName={others}", "State=RESUME")
        limit = time.monotonic() + 180
        while len(starts(job.run)) == before:
            assert time.monotonic() < limit, job.log
            time.sleep(0.5)
    assert cluster.wait(job.id, timeout=300) == "COMPLETED", job.log
    assert bad not in cluster.nodes(job.id), job.log
    assert losses(job.run) == without_slurm(2, digits, tmp_path / "alone", "--schedule.steps", LONG)
    print(f"crashed twice and left: {(job.run / 'slurm' / 'bad-nodes.tsv').read_text()}")


@pytest.mark.parametrize(("warned", "limits"), [(True, 2), (False, 1)], ids=["warned", "unwarned"])
def test_time_limits_chain(
    cluster: Cluster, digits: Path, slow_reference: dict[int, float], tmp_path: Path, warned: bool, limits: int
) -> None:
    """Slurm's own limit of a minute, its shortest. Unwarned, SIGTERM at the limit leaves KillWait to save.

    A warning comes half a minute before, so that more of them lie in the same run.
    """
    began = time.monotonic()
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=1")
    signal = "--signal=B:USR1@30" if warned else "--signal=CONT@1"
    job = submit(cluster, digits, tmp_path, "limited", *SLOW, options=(*options, signal))
    while len(starts(job.run)) <= limits and time.monotonic() < began + 120 * limits:
        time.sleep(0.5)
    cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=30", check=False)  # a slow machine would need many
    assert cluster.wait(job.id, timeout=900) == "COMPLETED", job.log
    count = len(starts(job.run))
    assert count > limits, "the run was done before that many time limits"
    check(job, slow_reference, attempts=count)
    assert sum(steps_again(job.run)) == 0
    assert job.log.count("after SIGUSR1; requeueing" if warned else "after SIGTERM; requeueing") == count - 1, job.log
    took = time.monotonic() - began
    print(f"{SLOW_STEPS} steps over {count - 1} time limits: starts {starts(job.run)}, {took:.0f} s")


def test_a_dead_slurmd(cluster: Cluster, digits: Path, slow_reference: dict[int, float], tmp_path: Path) -> None:
    """Its ranks live on beside those of the next attempt for a while: they must not write."""
    job = submit(cluster, digits, tmp_path, "slurmd-killed", *SLOW)
    wait_for_step(job, FAULT_STEP)
    kill_slurmd(cluster, job)
    state = cluster.wait(job.id, timeout=900)
    start_slurmd(cluster, job)
    assert state == "COMPLETED", job.log
    check(job, slow_reference, attempts=2)
    print(f"slurmd killed: starts {starts(job.run)}, steps done again {steps_again(job.run)}")


@pytest.mark.parametrize(("nodes", "ranks_a_node"), [(4, 1), (2, 2)])
def test_jobs_of_four_ranks(cluster: Cluster, digits: Path, tmp_path: Path, nodes: int, ranks_a_node: int) -> None:
    ranks = nodes * ranks_a_node
    micro = ("--train.micro-batch", 16 // ranks)
    expected = without_slurm(ranks, digits, tmp_path / "alone", *micro)
    sizes = (f"--nodes={nodes}", f"--ntasks-per-node={ranks_a_node}", f"--gpus-per-node={ranks_a_node}")
    options = (*sizes, "--cpus-per-task=1", "--time=30")
    job = submit(cluster, digits, tmp_path, "four", *micro, options=options)
    assert len(job.nodes) == nodes
    assert cluster.wait(job.id, timeout=300) == "COMPLETED", job.log
    check(job, expected, attempts=1)
    print(f"{nodes} nodes x {ranks_a_node} ranks: {len(expected)} losses equal to {ranks} ranks without Slurm")


def test_two_jobs_share_a_node(cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path) -> None:
    """Their ranks meet on the same host, at the same time."""
    options = ("--nodelist=node1", "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=30")
    variables = {"RUNS": str(tmp_path), "IN21K": str(digits)}
    jobs = [
        cluster.submit(
            "pretrain_tiny.sh",
            *OPTIONS,
            options=(*options, f"--job-name={name}", f"--output={tmp_path}/{name}.out"),
            **variables,
        )
        for name in ("first", "second")
    ]
    assert {cluster.wait(job, timeout=300) for job in jobs} == {"COMPLETED"}
    first, second = (cluster.jobs(job)[0] for job in jobs)
    assert first["NodeList"] == second["NodeList"] == "node1"
    assert second["StartTime"] < first["EndTime"], "they ran one after the other"
    for name in ("first", "second"):
        assert losses(tmp_path / name) == reference
