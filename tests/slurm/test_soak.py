"""Twenty random faults over one run, which ends as if none of them had been. Minutes: make soak."""

import random
import time
from pathlib import Path

import pytest

from pipeline.runs.folder import read_status
from tests.slurm.cluster import Cluster
from tests.slurm.faults import (
    ONE_RANK_PER_NODE,
    SLOW,
    SLOW_STEPS,
    Fault,
    Job,
    boot_node,
    crash_node,
    kill_slurmd,
    kill_task,
    left_behind,
    losses,
    plug,
    preempt,
    requeue,
    requeues,
    start_slurmd,
    starts,
    steps_again,
    stop_task,
    submit,
    training_nodes,
    unplug,
    wait_for_step,
    warn,
)

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(2400)]

CYCLES = 20
IN_JOB: tuple[Fault, ...] = (kill_task, stop_task, crash_node, kill_slurmd, unplug)
FAULTS: tuple[Fault, ...] = (*IN_JOB, requeue, warn, preempt)
REPAIRS: dict[Fault, Fault] = {crash_node: boot_node, kill_slurmd: start_slurmd, unplug: plug}
CHECKPOINTS = 10  # steps between two


def drawn(seed: int) -> list[Fault]:
    """Each fault twice or three times, in random order."""
    choice = random.Random(seed)
    faults = [*FAULTS, *FAULTS, *choice.sample(FAULTS, k=CYCLES - 2 * len(FAULTS))]
    choice.shuffle(faults)
    return faults


@pytest.mark.parametrize("seed", [1])
def test_twenty_random_faults(
    cluster: Cluster, digits: Path, slow_reference: dict[int, float], tmp_path: Path, seed: int
) -> None:
    """Two ranks on a job of four nodes: the spares replace what fails, and a job that has none left requeues itself."""
    began, choice = time.monotonic(), random.Random(seed)
    options = ("--nodes=4", *ONE_RANK_PER_NODE)
    job = submit(cluster, digits, tmp_path, "twenty-faults", *SLOW, options=options, SPARE_NODES="2")
    wait_for_step(job, 1)
    in_job = 0
    for cycle, fault in enumerate(drawn(seed), 1):
        before = starts(job.run)
        wait_for_step(job, before[-1] + choice.randint(CHECKPOINTS + 1, CHECKPOINTS + 3))  # beyond a checkpoint
        cluster.wait_running(job.id, timeout=180)
        job = Job(job.id, job.run, training_nodes(cluster, job))
        reached, struck, requeued = max(losses(job.run)), time.monotonic(), requeues(cluster, job)
        fault(cluster, job)
        limit = struck + 240
        while len(starts(job.run)) == len(before):
            assert time.monotonic() < limit, f"not started again after {fault.__name__}:\n{job.log}"
            time.sleep(0.2)
        back, start = time.monotonic() - struck, starts(job.run)[-1]
        stayed = requeues(cluster, job) == requeued
        in_job += stayed
        print(
            f"{cycle}. {fault.__name__} at step {reached} on {','.join(job.nodes)}: again after {back:.0f} s, "
            f"from step {start}{', in the same job' if stayed else ''}"
        )
        # One checkpoint may have been under way
        assert start >= reached - 2 * CHECKPOINTS, f"{fault.__name__} lost more than the steps since a checkpoint"
        if fault in REPAIRS:
            REPAIRS[fault](cluster, job)
    assert cluster.wait(job.id, timeout=300) == "COMPLETED", job.log
    status = read_status(job.run)
    assert status is not None
    assert (status.state, status.step) == ("finished", SLOW_STEPS)
    assert losses(job.run) == slow_reference
    assert left_behind(cluster, patience=90) == []
    assert in_job >= CYCLES // 4
    again = sum(steps_again(job.run))
    print(
        f"{len(starts(job.run))} starts, {in_job} of them in the same job, {again} of {SLOW_STEPS} steps again, "
        f"{time.monotonic() - began:.0f} s"
    )
