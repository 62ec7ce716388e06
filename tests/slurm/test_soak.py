"""Ten cycles of random faults over one run, which ends as if none of them had been. Minutes: make soak."""

import random
import time
from pathlib import Path

import pytest

from pipeline.runs.folder import read_status
from tests.slurm.cluster import Cluster
from tests.slurm.faults import (
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
    start_slurmd,
    starts,
    steps_again,
    submit,
    unplug,
    wait_for_step,
    warn,
)

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(2400)]

CYCLES = 10
FAULTS: tuple[Fault, ...] = (requeue, warn, preempt, kill_task, crash_node, kill_slurmd, unplug)
REPAIRS: dict[Fault, Fault] = {crash_node: boot_node, kill_slurmd: start_slurmd, unplug: plug}
CHECKPOINTS = 10  # steps between two


def drawn(seed: int) -> list[Fault]:
    """Each fault once or twice, in random order."""
    choice = random.Random(seed)
    faults = [*FAULTS, *choice.sample(FAULTS, k=CYCLES - len(FAULTS))]
    choice.shuffle(faults)
    return faults


@pytest.mark.parametrize("seed", [1])
def test_ten_random_faults(
    cluster: Cluster, digits: Path, slow_reference: dict[int, float], tmp_path: Path, seed: int
) -> None:
    began, choice = time.monotonic(), random.Random(seed)
    job = submit(cluster, digits, tmp_path, "ten-faults", *SLOW)
    wait_for_step(job, 1)
    for cycle, fault in enumerate(drawn(seed), 1):
        before = starts(job.run)
        wait_for_step(job, before[-1] + choice.randint(CHECKPOINTS + 1, 2 * CHECKPOINTS))  # beyond a checkpoint
        job = Job(job.id, job.run, cluster.wait_running(job.id, timeout=180))
        reached, struck = max(losses(job.run)), time.monotonic()
        fault(cluster, job)
        limit = struck + 240
        while len(starts(job.run)) == len(before):
            assert time.monotonic() < limit, f"not started again after {fault.__name__}:\n{job.log}"
            time.sleep(0.2)
        back, start = time.monotonic() - struck, starts(job.run)[-1]
        print(
            f"{cycle}. {fault.__name__} at step {reached} on {','.join(job.nodes)}: again after {back:.0f} s, "
            f"from step {start}"
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
    again = sum(steps_again(job.run))
    print(f"{len(starts(job.run))} starts, {again} of {SLOW_STEPS} steps again, {time.monotonic() - began:.0f} s")
