"""Samples and workers that fail while training goes on."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import UserError
from pipeline.data import Batch, Split, open_split, train_batches
from pipeline.order import Order
from pipeline.transforms import TrainTransform

GLOBAL_BATCH, STEPS = 32, 3


def batches(
    split: Split, *, world: int = 1, rank: int = 0, workers: int = 0, budget: int = 100, stop: int = STEPS
) -> Iterator[Batch]:
    return train_batches(
        split, TrainTransform(16), seed=3, global_batch=GLOBAL_BATCH, micro_batch=8, rank=rank, world_size=world,
        workers=workers, start_step=0, stop_step=stop, damage_budget=budget,
    )  # fmt: skip


@pytest.fixture
def damaged(digits: Path, tmp_path: Path) -> tuple[Split, list[int]]:
    """A copy in which two samples of the first step no longer decode, and their rows."""
    shutil.copytree(digits, tmp_path / "copy")
    split = open_split(tmp_path / "copy", "train")
    _, rows = Order(tuple(shard.samples for shard in split.shards), 3).rows(np.arange(GLOBAL_BATCH))
    chosen = [int(rows[5]), int(rows[22])]
    for row in chosen:
        shard = next(item for item in split.shards if item.shard == split.shard[row])
        with (split.folder / shard.file_name).open("r+b") as file:
            file.seek(int(split.offset[row]))
            file.write(bytes(int(split.size[row])))
    return split, chosen


def content(split: Split, world: int) -> dict[int, list[tuple[int, int, bytes]]]:
    steps: dict[int, list[tuple[int, int, bytes]]] = {step: [] for step in range(STEPS)}
    for rank in range(world):
        for batch in batches(split, world=world, rank=rank):
            rows, labels = batch.samples_B.tolist(), batch.labels_B.tolist()
            for row, label, image in zip(rows, labels, batch.images_BHWC.numpy(), strict=True):
                steps[batch.step].append((row, label, image.tobytes()))
    return {step: sorted(items) for step, items in steps.items()}


def test_others_stand_in_for_damaged_samples_the_same_for_any_world_size(
    damaged: tuple[Split, list[int]], digits: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split, chosen = damaged
    whole = content(split, 1)
    warnings = capfd.readouterr().err
    for row in chosen:
        assert f"warning: rank 0, step 1: {split.where(row)}: " in warnings
    assert content(split, 4) == whole
    sound = content(open_split(digits, "train"), 1)
    assert set(chosen) <= {row for row, _, _ in sound[0]}
    replaced = [item for item in whole[0] if item not in sound[0]]
    assert len(replaced) == 2
    for row, label, _ in replaced:
        assert row not in chosen
        assert label == split.label[row]
    assert whole[1] == sound[1]


def test_past_the_budget_the_run_stops_and_says_why(damaged: tuple[Split, list[int]]) -> None:
    split, _ = damaged
    with pytest.raises(UserError, match=r"2 samples don't decode, .*train-\d+\.tar.*data\.damage_budget allows 1"):
        list(batches(split, budget=1))
    assert len(list(batches(split, budget=2))) == STEPS * GLOBAL_BATCH // 8


def test_a_shard_that_was_cut_off_is_damage_and_one_with_nothing_left_is_the_end(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "copy")
    split = open_split(tmp_path / "copy", "train")
    shard = split.shards[0]
    os.truncate(split.folder / shard.file_name, 1000)
    with pytest.raises(UserError, match=r"the shard ends after 0 of the sample's \d+ bytes"):
        list(batches(split, budget=3))
    for item in split.shards:
        os.truncate(split.folder / item.file_name, 0)
    with pytest.raises(RuntimeError, match="21 samples that don't decode, one after another"):
        list(batches(split))


def read_until_a_worker_is_killed(data: str) -> None:
    """A process of its own: torch raises in a signal handler, which would hit whatever pytest is doing just then."""
    reader = batches(open_split(Path(data), "train"), workers=2, stop=100_000)
    next(reader)
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    print(f"killed {worker.pid}", flush=True)
    for _ in reader:
        pass


def test_a_killed_worker_ends_the_reader_at_once(digits: Path) -> None:
    program = f"from tests.loader import test_damage; test_damage.read_until_a_worker_is_killed({str(digits)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    pid = done.stdout.removeprefix("killed ").strip()
    assert f"DataLoader worker (pid {pid}) is killed by signal" in done.stderr or f"(pid(s) {pid})" in done.stderr
