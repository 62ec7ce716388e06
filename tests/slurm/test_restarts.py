"""Ranks that start again in the same Slurm job: by kind of fault, with spares, with fewer nodes. Minutes: make soak."""

import json
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.runs import records
from pipeline.runs.folder import read_status
from tests.slurm.cluster import Cluster
from tests.slurm.faults import (
    FAULT_STEP,
    ONE_RANK_PER_NODE,
    SLOW,
    Fault,
    Job,
    can_hang,
    hang_task,
    kill_slurmd,
    kill_task,
    left_behind,
    losses,
    requeue,
    requeues,
    seconds_to_the_next_step,
    starts,
    stop_task,
    submit,
    training_nodes,
    unplug,
    wait_for_step,
    without_slurm,
)

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1500)]

LONG = 200  # steps: room for five faults, each beyond a checkpoint


def power_loss(cluster: Cluster, job: Job) -> None:
    cluster.call("crash", training_nodes(cluster, job)[1])


def two_power_losses(cluster: Cluster, job: Job) -> None:
    """Of a node that trains and of the next spare."""
    lost = training_nodes(cluster, job)[1]
    spare = next(node for node in cluster.nodes(job.id) if node not in training_nodes(cluster, job))
    cluster.call("crash", lost)
    cluster.call("crash", spare)


@dataclass(frozen=True)
class Kind:
    cause: Fault
    named: str  # how the job's log names what failed: a pattern after the first lost node's name
    times: int = 5
    slow: bool = False  # the training goes on until Slurm misses the node


KINDS = {
    "killed rank": Kind(kill_task, ": rank 1 was the first to fail in attempt 1, with exit code 137"),
    "stopped rank": Kind(stop_task, " is gone: no sign of life since step"),
    "hung rank": Kind(
        hang_task, r" has made no progress for \d+ s while others wait \(step \d+, in the forward pass\)"
    ),
    "power loss": Kind(power_loss, ": lost in attempt 1"),
    "network cut": Kind(unplug, ": lost in attempt 1"),
    "killed slurmd": Kind(kill_slurmd, ": lost in attempt 1", slow=True),
    "two power losses": Kind(two_power_losses, ": lost in attempt 1", times=3),  # each takes two of the eight nodes
}


@pytest.fixture(scope="module")
def long_reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return without_slurm(2, digits, tmp_path_factory.mktemp("long"), "--schedule.steps", LONG)


def mend(cluster: Cluster) -> None:
    """Bring back every node, whatever happened to it, and wait for Slurm to see it."""
    up = dict(line.split() for line in cluster.call("status").splitlines())
    nodes = [name for name in up if name != "ctl"]
    for node in nodes:
        if up[node] == "down":
            cluster.call("boot", node)
        else:
            cluster.call("plug", node)
            if not cluster.call("on", node, "pgrep", "-x", "slurmd", check=False):
                cluster.call("start-slurmd", node)
    limit = time.monotonic() + 90
    while set(cluster.run("sinfo", "-h", "-N", "-p", "batch", "-t", "idle", "-o", "%N").split()) != set(nodes):
        assert time.monotonic() < limit, cluster.run("sinfo", "-N", "-l")
        time.sleep(0.5)


def strike(cluster: Cluster, job: Job, *faults: Fault) -> list[float]:
    """Cause the faults, each some steps after a start; the job completes. Seconds to each next step."""
    wait_for_step(job, 1)
    seconds = []
    try:
        for attempts, fault in enumerate(faults, 1):
            wait_for_step(job, starts(job.run)[-1] + FAULT_STEP)
            struck = Job(job.id, job.run, training_nodes(cluster, job))
            assert len(struck.nodes) == 2
            began = time.time()
            fault(cluster, struck)
            seconds.append(seconds_to_the_next_step(struck, began, attempts))
        assert cluster.wait(job.id, timeout=600) == "COMPLETED", job.log
    finally:
        cluster.run("scancel", job.id, check=False)
        mend(cluster)
    return seconds


@pytest.mark.parametrize("kind", KINDS)
def test_spares_replace_what_fails(
    cluster: Cluster, digits: Path, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    """Two ranks, six spare nodes: one job to the end, with the losses of an undisturbed run."""
    fault = KINDS[kind]
    more: tuple[object, ...] = SLOW if fault.slow else ("--schedule.steps", LONG)
    expected = request.getfixturevalue("slow_reference" if fault.slow else "long_reference")
    options = ("--nodes=8", *ONE_RANK_PER_NODE)
    environment = {"SPARE_NODES": "6", **(can_hang(tmp_path / "hang") if kind == "hung rank" else {})}
    job = submit(cluster, digits, tmp_path, kind.replace(" ", "-"), *more, options=options, **environment)
    seconds = strike(cluster, job, *[fault.cause] * fault.times)
    print(f"{kind}: median {statistics.median(seconds):.1f} s of {[round(one, 1) for one in seconds]} to the next step")
    assert requeues(cluster, job) == 0, job.log
    assert re.search(job.nodes[1] + fault.named, job.log), job.log
    assert len(starts(job.run)) == fault.times + 1
    assert losses(job.run) == expected
    assert left_behind(cluster, patience=90) == []


def test_ranks_of_torchrun_start_again_in_the_same_job(
    cluster: Cluster, digits: Path, long_reference: dict[int, float], tmp_path: Path
) -> None:
    """Two agents of one rank each: a killed rank, then the power loss of a node, which a spare one replaces."""
    options = ("--nodes=4", *ONE_RANK_PER_NODE)
    settings = {"SPARE_NODES": "2", "LAUNCHER": "torchrun"}
    job = submit(cluster, digits, tmp_path, "agents", "--schedule.steps", LONG, options=options, **settings)
    seconds = strike(cluster, job, kill_task, power_loss)
    assert requeues(cluster, job) == 0, job.log
    assert len(starts(job.run)) == 3
    assert losses(job.run) == long_reference
    assert left_behind(cluster, patience=90) == []
    print(f"torchrun: {[round(one, 1) for one in seconds]} s to the next step")


@pytest.mark.parametrize("kind", ["killed rank", "power loss"])
def test_the_same_by_requeue(
    cluster: Cluster, digits: Path, long_reference: dict[int, float], tmp_path: Path, kind: str
) -> None:
    """RESTARTS_IN_JOB=0, for comparison."""
    options = ("--nodes=2", *ONE_RANK_PER_NODE)
    more = ("--schedule.steps", LONG)
    name = f"requeued-{kind.replace(' ', '-')}"
    job = submit(cluster, digits, tmp_path, name, *more, options=options, RESTARTS_IN_JOB="0")
    seconds = strike(cluster, job, *[KINDS[kind].cause] * 3)
    print(f"{kind}, requeued: median {statistics.median(seconds):.1f} s of {[round(one, 1) for one in seconds]}")
    assert requeues(cluster, job) in (3, 4)  # Slurm 22.05 may end the step of the same number in the next start, too
    assert losses(job.run) == long_reference


def test_the_node_of_the_job_script_is_lost(
    cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path
) -> None:
    """Slurm would let the job hold its other nodes until the time limit: the guard requeues it."""
    job = submit(cluster, digits, tmp_path, "no-script", options=("--nodes=4", *ONE_RANK_PER_NODE), SPARE_NODES="2")
    wait_for_step(job, FAULT_STEP)
    struck = time.time()
    try:
        cluster.call("crash", job.nodes[0])
        seconds = seconds_to_the_next_step(job, struck, 1)
        assert cluster.wait(job.id, timeout=300) == "COMPLETED", job.log
    finally:
        cluster.run("scancel", job.id, check=False)
        mend(cluster)
    assert requeues(cluster, job) == 1
    assert f"{job.nodes[0]}, which ran the job's script, is lost: requeueing" in job.log
    assert f"node {job.nodes[0]}: lost in attempt 1" in job.log
    assert losses(job.run) == reference
    print(f"node of the job script lost: {seconds:.1f} s to the next step")


def test_fewer_nodes_until_the_next_requeue(
    cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path
) -> None:
    """Four nodes, one is lost: three don't divide the batch, so two go on; a requeue brings four back."""
    options = ("--nodes=4", *ONE_RANK_PER_NODE)
    job = submit(cluster, digits, tmp_path, "fewer", "--train.micro-batch", 4, options=options, ELASTIC="yes")
    wait_for_step(job, FAULT_STEP)
    struck = time.time()
    try:
        power_loss(cluster, job)
        seconds = seconds_to_the_next_step(job, struck, 1)
        wait_for_step(job, starts(job.run)[-1] + 10)
        status = read_status(job.run)
        assert status is not None
        assert status.fewer_nodes == "2 of 4 nodes"
        assert requeues(cluster, job) == 0
        requeue(cluster, job)
        seconds_to_the_next_step(job, time.time(), 2)
        assert len(training_nodes(cluster, job)) == 4
        assert cluster.wait(job.id, timeout=600) == "COMPLETED", job.log
    finally:
        cluster.run("scancel", job.id, check=False)
        mend(cluster)
    record = records.read_record(job.run)
    assert record is not None
    assert [attempt.place.get("fewer_nodes", "") for attempt in record.attempts] == ["", "2 of 4 nodes", ""]
    assert "training on 2 of 4 nodes until the next requeue" in job.log
    found = losses(job.run)
    assert sorted(found) == sorted(reference)
    worst = max(abs(found[step] - reference[step]) / reference[step] for step in found)
    assert worst < 1e-3, worst  # sums in another order: 4, 2 and 4 ranks in place of 2
    print(f"fewer nodes: {seconds:.1f} s to the next step; losses within {worst:.1e}; {json.dumps(starts(job.run))}")


def test_elastic_no_waits_for_all_nodes(
    cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path
) -> None:
    job = submit(cluster, digits, tmp_path, "waits", options=("--nodes=2", *ONE_RANK_PER_NODE))
    wait_for_step(job, FAULT_STEP)
    try:
        power_loss(cluster, job)
        assert cluster.wait(job.id, timeout=300) == "COMPLETED", job.log
    finally:
        cluster.run("scancel", job.id, check=False)
        mend(cluster)
    assert requeues(cluster, job) == 1
    assert losses(job.run) == reference
