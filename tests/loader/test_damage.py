"""Samples and workers that fail while training goes on."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import Dataset

from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import JoinedSplit, open_split
from pipeline.loader.batches import Batch, eval_batches, train_batches
from pipeline.loader.order import Order
from pipeline.loader.transforms import TrainTransform
from pipeline.loader.workers import load, slots_for
from pipeline.runs import records
from pipeline.runs.damage_record import Damages
from pipeline.runs.folder import METRICS
from tests.helpers.jobs import job
from tests.helpers.launch import REPOSITORY
from tests.helpers.ranks import run_ranks

GLOBAL_BATCH, STEPS = 32, 3


def batches(
    split: JoinedSplit, *, world: int = 1, rank: int = 0, workers: int = 0, stop: int = STEPS
) -> Iterator[Batch]:
    return train_batches(
        split, TrainTransform(16), seed=3, global_batch=GLOBAL_BATCH, micro_batch=8, rank=rank, world_size=world,
        workers=workers, start_step=0, stop_step=stop,
    )  # fmt: skip


@pytest.fixture
def damaged(digits: Path, tmp_path: Path) -> tuple[JoinedSplit, list[int]]:
    """A copy in which two samples of the first step no longer decode, and their rows."""
    shutil.copytree(digits, tmp_path / "copy")
    split = open_split(tmp_path / "copy", "train")
    _, rows = Order(tuple(shard.samples for shard in split.shards), 3).rows(np.arange(GLOBAL_BATCH))
    chosen = [int(rows[5]), int(rows[22])]
    for row in chosen:
        shard = next(item for item in split.shards if item.shard == split.parts[0].shard[row])
        with (split.folder / shard.file_name).open("r+b") as file:
            file.seek(int(split.parts[0].offset[row]))
            file.write(bytes(int(split.parts[0].size[row])))
    return split, chosen


def content(split: JoinedSplit, world: int) -> dict[int, list[tuple[int, int, bytes]]]:
    steps: dict[int, list[tuple[int, int, bytes]]] = {step: [] for step in range(STEPS)}
    for rank in range(world):
        for batch in batches(split, world=world, rank=rank):
            rows, labels = batch.samples_B.tolist(), batch.labels_B.tolist()
            for row, label, image in zip(rows, labels, batch.images_BHWC.numpy(), strict=True):
                steps[batch.step].append((row, label, image.tobytes()))
    return {step: sorted(items) for step, items in steps.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_names_a_damaged_sample(damaged: tuple[JoinedSplit, list[int]], workers: int) -> None:
    split, chosen = damaged
    first = min(chosen)
    shard, offset = split.place(first)
    with pytest.raises(UserError, match=rf"sample {first} \({shard}, byte {offset}\): .*vit verify"):
        list(eval_batches(split, image_size=16, batch=50, rank=0, world_size=1, workers=workers))


def test_others_stand_in_for_damaged_samples_the_same_for_any_world_size(
    damaged: tuple[JoinedSplit, list[int]], digits: Path
) -> None:
    split, chosen = damaged
    whole = content(split, 1)
    found = {item.sample: item for batch in batches(split) for item in batch.damaged}
    assert sorted(found) == sorted(chosen)
    for row in chosen:
        assert (found[row].shard, found[row].offset) == split.place(row)
        assert found[row].reason == "no_jpeg"
    assert content(split, 4) == whole
    sound = content(open_split(digits, "train"), 1)
    assert set(chosen) <= {row for row, _, _ in sound[0]}
    replaced = [item for item in whole[0] if item not in sound[0]]
    assert len(replaced) == 2
    for row, label, _ in replaced:
        assert row not in chosen
        assert label == split.label[row]
    assert whole[1] == sound[1]


def test_a_shard_that_was_cut_off_is_damage_and_one_with_nothing_left_is_the_end(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "copy")
    split = open_split(tmp_path / "copy", "train")
    os.truncate(split.folder / split.shards[0].file_name, 1000)
    found = [item for batch in batches(split) for item in batch.damaged]
    assert found
    assert {item.shard for item in found} == {split.shards[0].file_name}
    assert {item.reason for item in found} == {"shard_cut"}
    for item in split.shards:
        os.truncate(split.folder / item.file_name, 0)
    others = multiprocessing.active_children()
    for workers in (0, 1):
        reader = batches(split, workers=workers)
        for step in (0, 0, 0, 0, 1, 1, 1, 1):  # what they meet is reported after each step
            batch = next(reader)
            assert batch.step == step
            assert len(batch.damaged) >= 21
            assert not batch.images_BHWC.any()
        with pytest.raises(UserError, match=r"^data\.train '.*': 21 consecutive samples can't be decoded"):
            next(reader)
    for child in multiprocessing.active_children():
        if child not in others:  # the worker, which the traceback keeps
            child.kill()
            child.join()


def test_a_run_counts_what_is_damaged_by_reason_and_shard_over_all_ranks_and_restarts(
    damaged: tuple[JoinedSplit, list[int]], tmp_path: Path
) -> None:
    split, chosen = damaged
    other = next(row for row in range(len(split)) if row not in chosen and split.place(row)[0] == "train-00000.tar")
    with (split.folder / "train-00000.tar").open("r+b") as file:
        file.seek(split.place(other)[1])
        file.write(b"\xff\xd8" + bytes(len(split.read(other)) - 2))
    run = tmp_path / "run"
    steps = len(split) // GLOBAL_BATCH + 2  # each sample at least once
    options = ("--checkpoint.every", 10, "--train.seed", 3, "--train.global-batch", GLOBAL_BATCH)
    first = job(run, split.folder, *options, steps=steps)
    (done, _) = run_ranks(2, ("-m", *first), tmp_path / "log")
    lines = [line.split("\t") for line in (run / "damage.tsv").read_text().splitlines()]
    assert {int(sample) for _, sample, *_ in lines} == {*chosen, other}
    for step, sample, shard, offset, _, _ in lines:
        assert (shard, int(offset)) == split.place(int(sample))
        assert f"warning: step {step}: {split.where(int(sample))}: " in done.output or int(step) > steps - 2  # again
    summary = f"3 samples can't be decoded, replaced {len(lines)} times: "
    assert summary in done.output
    metrics = records.read_lines(run / METRICS)[0][-1].metrics
    assert metrics["damage/samples"] == 3
    assert metrics["damage/met"] == len(lines)
    assert metrics["damage/no_jpeg"] == 2
    assert metrics["damage/undecodable"] == 1
    assert sorted(Damages(run, 1).samples) == sorted(chosen)  # as a run sees it that resumes after the first step


def test_past_the_budget_of_all_ranks_a_run_stops_and_says_why(
    damaged: tuple[JoinedSplit, list[int]], tmp_path: Path
) -> None:
    split, _ = damaged
    options = ("--train.seed", 3, "--train.global-batch", GLOBAL_BATCH, "--data.damage-budget")
    ends = run_ranks(2, ("-m", *job(tmp_path / "run", split.folder, *options, 1)), tmp_path / "log", code=2)
    for rank in ends:
        (error,) = [line for line in rank.output.splitlines() if " error: " in line]
        assert "2 samples can't be decoded, replaced 2 times: 2 no_jpeg" in error
        assert "data.damage_budget allows 1" in error
        assert "train-0" in error
    run_ranks(2, ("-m", *job(tmp_path / "run2", split.folder, *options, 2)), tmp_path / "log2")


def test_a_run_on_nothing_but_damage_names_the_samples(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "copy")
    for tar in (tmp_path / "copy").glob("train-*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    (end,) = run_ranks(1, ("-m", *job(tmp_path / "run", tmp_path / "copy")), tmp_path / "log", code=2)
    assert "Traceback" not in end.output
    (error,) = [line for line in end.output.splitlines() if " error: " in line]
    assert "no_jpeg" in error
    assert len(Damages(tmp_path / "run", 1).samples) > 100


class Refusing(Dataset[None]):
    def __getitem__(self, item: tuple[int, int]) -> None:
        raise UserError(f"item {item[0]}: in one line")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_in_a_worker_stays_one_line(workers: int) -> None:
    with pytest.raises(UserError, match=r"^item 0: in one line$"):
        list(load(Refusing(), range(3), slots_for(range(3), workers, 1, 8), workers))


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_worker_ends_the_reader_and_nothing_else(digits: Path, busy: bool) -> None:
    command = [sys.executable, "-m", "tests.loader.killed_worker", str(digits), *["busy"] * busy]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    killed, *elsewhere, said = done.stdout.splitlines()
    assert elsewhere == ["elsewhere"] * busy
    pid = killed.removeprefix("killed ")
    assert re.fullmatch(rf"a data loader worker died \(.*{pid}.*\), most likely .* lower data\.workers .*", said)
    assert done.stderr.splitlines()[-1] == "ValueError: something else, while workers are there"
    assert "DataLoader worker" not in done.stderr
