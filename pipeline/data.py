"""The loader: the samples that pipeline.order names, read at their offsets in the tars, decoded in worker processes.

B batch, H W pixels, C channels.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline import order, shards
from pipeline.cli import UserError
from pipeline.jpeg import Image
from pipeline.order import Ints, Order
from pipeline.rows import read_rows
from pipeline.transforms import TrainTransform, eval_image

_STAND_INS = 20  # in a row, each damaged too, before the data set is called broken


@dataclass(frozen=True)
class Batch:
    images_BHWC: torch.Tensor  # uint8
    labels_B: torch.Tensor  # int64
    samples_B: torch.Tensor  # int64, row of the sample within its split
    step: int  # optimizer step, from 0; -1 in evaluation
    damaged: tuple[str, ...] = ()  # samples that others stand in for, each with its reason

    def pin_memory(self) -> "Batch":
        pinned = (self.images_BHWC.pin_memory(), self.labels_B.pin_memory(), self.samples_B.pin_memory())
        return Batch(*pinned, self.step, self.damaged)


class Split:
    """One split of a data set, opened: its index columns and, in each process, the tars it has read from."""

    def __init__(self, folder: Path, split: str):
        self.folder = folder
        self.info = shards.read_info(folder)
        self.shards = self.info.split_shards(split)
        for shard in self.shards:
            path = folder / shard.file_name
            try:
                found = path.stat().st_size
            except OSError:
                found = -1
            if found != shard.bytes:
                raise UserError(
                    f"shard {str(path)!r} is missing or not {shard.bytes} bytes long: run data_prep.shard again"
                )
        rows = read_rows(folder, split, self.info.samples[split], self.info.digest)
        self.shard, self.offset, self.size, self.label = (rows[name] for name in ("shard", "offset", "size", "label"))
        self._place = {shard.shard: number for number, shard in enumerate(self.shards)}
        self._files: dict[int, int] = {}  # descriptors, opened by the process that reads

    def __len__(self) -> int:
        return len(self.label)

    def read(self, row: int) -> bytes:
        """The JPEG of one sample. Raises ValueError where the shard is too short by now."""
        shard = int(self.shard[row])
        if shard not in self._files:
            self._files[shard] = os.open(self.folder / self.shards[self._place[shard]].file_name, os.O_RDONLY)
        size = int(self.size[row])
        jpeg = os.pread(self._files[shard], size, int(self.offset[row]))
        if len(jpeg) != size:
            raise ValueError(f"the shard ends after {len(jpeg)} of the sample's {size} bytes")
        return jpeg

    def where(self, row: int) -> str:
        """A sample's place for messages: shard and offset."""
        shard = self.shards[self._place[int(self.shard[row])]]
        return f"sample {row} ({shard.file_name}, byte {self.offset[row]})"


def open_split(folder: Path, split: str) -> Split:
    """Raises UserError where the data set is unfinished, lacks the split or a shard."""
    return Split(folder, split)


@dataclass(frozen=True)
class TrainMicroBatches(Dataset[Batch]):
    """Item k: the k-th micro-batch of this rank since step 0."""

    split: Split
    order: Order
    transform: TrainTransform
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self.global_batch // (self.micro_batch * self.world_size))
        positions = order.micro_batch_positions(
            step,
            part,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch,
            rank=self.rank,
            world_size=self.world_size,
        )
        epochs, rows = self.order.rows(positions)
        seeds = order.sample_seeds(self.order.seed, epochs, rows)
        images_BHWC = np.empty((len(rows), self.transform.size, self.transform.size, 3), np.uint8)
        damaged: list[str] = []
        for place, (row, seed) in enumerate(zip(rows.tolist(), seeds.tolist(), strict=True)):
            rows[place] = self._load(row, seed, images_BHWC[place], damaged)
        return _batch(self.split, images_BHWC, rows, step, tuple(damaged))

    def _load(self, row: int, seed: int, out: Image, damaged: list[str]) -> int:
        """Fill ``out`` with a sample, or where it is damaged with others until one is sound; returns its row.

        The stand-ins are drawn by the sample's seed, so that they are the same for any number of ranks.
        """
        for stand_in in range(1, _STAND_INS + 2):
            try:
                self.transform(self.split.read(row), seed, out)
            except ValueError as error:
                damaged.append(f"{self.split.where(row)}: {error}")
                draw = np.random.Generator(np.random.SFC64([seed, stand_in]))
                row = int(draw.integers(len(self.split)))
            else:
                return row
        raise RuntimeError(f"{len(damaged)} samples that don't decode, one after another: {'; '.join(damaged[-3:])}")


@dataclass(frozen=True)
class EvalBatches(Dataset[Batch]):
    """Item k: the k-th batch of the rows congruent to this rank."""

    split: Split
    image_size: int
    batch: int
    rank: int
    world_size: int
    resize: Literal["square", "central"]

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch * self.world_size + self.rank
        rows = np.arange(first, min(first + self.batch * self.world_size, len(self.split)), self.world_size)
        images_BHWC = np.stack(
            [eval_image(self.split.read(row), self.image_size, self.resize) for row in rows.tolist()]
        )
        return _batch(self.split, images_BHWC, rows, -1)


def train_batches(
    split: Split,
    transform: TrainTransform,
    *,
    seed: int,
    global_batch: int,
    micro_batch: int,
    rank: int,
    world_size: int,
    workers: int,
    start_step: int,
    stop_step: int,
    damage_budget: int = 100,
) -> Iterator[Batch]:
    """This rank's micro-batches of the steps from ``start_step`` up to ``stop_step``, in order.

    A sample that doesn't decode is named on stderr and another stands in for it, up to ``damage_budget`` times a rank;
    past that it raises UserError.
    """
    sizes = tuple(shard.samples for shard in split.shards)
    batches = TrainMicroBatches(split, Order(sizes, seed), transform, global_batch, micro_batch, rank, world_size)
    passes = global_batch // (micro_batch * world_size)
    damaged = 0
    for batch in _load(batches, range(start_step * passes, stop_step * passes), workers):
        for which in batch.damaged:
            damaged += 1
            print(
                f"warning: rank {rank}, step {batch.step + 1}: {which}; another stands in", file=sys.stderr, flush=True
            )
        if damaged > damage_budget:
            raise UserError(
                f"data.train {str(split.folder)!r}: {damaged} samples don't decode, the last in {batch.damaged[-1]}; "
                f"data.damage_budget allows {damage_budget} a rank: check the data set with python -m data_prep.verify"
            )
        yield batch


def eval_batches(
    split: Split,
    *,
    image_size: int,
    batch: int,
    rank: int,
    world_size: int,
    workers: int,
    resize: Literal["square", "central"] = "square",
) -> Iterator[Batch]:
    """Every sample exactly once over the ranks, in index order; the last batch of a rank may be short or absent."""
    samples = len(range(rank, len(split), world_size))
    yield from _load(
        EvalBatches(split, image_size, batch, rank, world_size, resize), range(-(-samples // batch)), workers
    )


def normalise(images_BHWC: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 images -> x_BCHW in [-1, 1], on the images' device: (x - 127.5) / 127.5."""
    return ((images_BHWC.to(torch.float32) - 127.5) / 127.5).to(dtype).permute(0, 3, 1, 2).contiguous()


def _load(batches: Dataset[Batch], indices: range, workers: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        batches,
        batch_size=None,
        sampler=indices,
        num_workers=min(workers, len(indices)),
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers and len(indices) else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a loader worker has died ({error}). Mostly the node ran out of memory: lower data.workers or ask for more"
        ) from error


def _same(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:  # noqa: ARG001
    """Slurm signals every process of a task; the training process decides, and its workers leave with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    cv2.setNumThreads(0)


@atexit.register
def _end_workers() -> None:
    """Runs before multiprocessing's own exit handler, which would send SIGTERM to the workers and wait for ever."""
    for child in multiprocessing.active_children():
        child.kill()


def _batch(split: Split, images_BHWC: Image, rows: Ints, step: int, damaged: tuple[str, ...] = ()) -> Batch:
    return Batch(
        images_BHWC=torch.from_numpy(images_BHWC),
        labels_B=torch.from_numpy(split.label[rows].astype(np.int64)),
        samples_B=torch.from_numpy(rows.astype(np.int64)),
        step=step,
        damaged=damaged,
    )
