"""A run that is killed again and again, by kill -9 and at any moment, ends with the very bits of one that is not."""

import random
import time
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import format as checkpoint
from pipeline.runs import records
from pipeline.runs.folder import METRICS
from tests.helpers.jobs import job
from tests.helpers.ranks import Ranks, run_ranks

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

KILLS = 20
STEPS = 120
OPTIONS = ("--checkpoint.every", 2, "--data.workers", 1, "--train.average", 0.9, "--train.zero-stage", 2)


def recorded(run: Path) -> int:
    lines, _ = records.read_lines(run / METRICS)
    return max((line.step for line in lines), default=0)


def test_twenty_kills(digits: Path, tmp_path: Path) -> None:
    calm, run = tmp_path / "calm", tmp_path / "run"
    run_ranks(2, ("-m", *job(calm, digits, *OPTIONS, steps=STEPS)), tmp_path / "log-calm", timeout=300)
    choice, kills, saving, furthest = random.Random(0), 0, 0, 0
    for attempt in range(60):
        if kills == KILLS:
            break
        with Ranks(2, ("-m", *job(run, digits, *OPTIONS, steps=STEPS)), tmp_path / f"log{attempt}") as ranks:
            ranks.wait_for("step ", 60)
            target = recorded(run) + choice.randint(1, 7)
            while recorded(run) < target and ranks.processes[0].exitcode is None:
                time.sleep(0.005)
            time.sleep(choice.random() * 0.2)  # anywhere in a step, or in a checkpoint's writing
            if ranks.processes[0].exitcode is not None:
                pytest.fail(f"the run ended after {kills} kills:\n{ranks.output()}")
            saving += any((run / "checkpoints").glob(".step-*.tmp"))
            ranks.processes[choice.randint(0, 1)].kill()
            kills += 1
        furthest = max(furthest, recorded(run))
        assert furthest < STEPS, "too few steps for so many kills"
    finished = run_ranks(2, ("-m", *job(run, digits, *OPTIONS, steps=STEPS)), tmp_path / "log-last", timeout=300)
    ours, theirs = (dict(checkpoint.State(checkpoint.complete(folder)[-1])) for folder in (run, calm))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    lines, _ = records.read_lines(run / METRICS)
    record = records.read_record(run)
    assert record is not None
    effective = {line.step: line.metrics["train/loss"] for line in records.effective(lines, record.attempts)}
    calm_lines, _ = records.read_lines(calm / METRICS)
    assert effective == {line.step: line.metrics["train/loss"] for line in calm_lines}
    print(
        f"{kills} kills, {saving} of them while a checkpoint was being written; {finished[0].output.splitlines()[-1]}"
    )
