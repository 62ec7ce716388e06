"""The loader: the samples that order.py names, read at their offsets in the tars, decoded in worker processes.

B batch, H W pixels, C channels.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.core.arrays import Ints
from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import JoinedSplit
from pipeline.imaging.jpeg import Image
from pipeline.loader import order
from pipeline.loader.damage import Damage
from pipeline.loader.mixture import Mixture, sampling
from pipeline.loader.order import Order
from pipeline.loader.shared_memory import Slots
from pipeline.loader.transforms import TrainTransform, eval_image
from pipeline.loader.workers import load, slots_for

Item = TypeVar("Item")
ANNOUNCE = 1.0  # seconds between looks at the shards that come next
_STAND_INS = 20  # in a row, each damaged too, before the dataset is called broken


@dataclass(frozen=True)
class Batch:
    images_BHWC: torch.Tensor  # uint8
    labels_B: torch.Tensor  # int64
    samples_B: torch.Tensor  # int64, row of the sample within its split
    step: int  # optimizer step, from 0; -1 in evaluation
    damaged: tuple[Damage, ...] = ()  # samples that others stand in for


class Loaded(NamedTuple):
    """A batch whose images lie in a slot."""

    slot: int
    labels_B: Ints
    samples_B: Ints
    step: int
    damaged: tuple[Damage, ...] = ()
    complete: bool = True  # False: nothing could stand in for a damaged sample, whose image is black


@dataclass(frozen=True)
class TrainMicroBatches(Dataset[Loaded]):
    """Item (k, slot): the k-th micro-batch of this rank since step 0."""

    split: JoinedSplit
    order: Order | Mixture
    transform: TrainTransform
    global_batch: int
    micro_batch: int
    rank: int
    world_size: int
    slots: Slots
    announced: list[float] = field(default_factory=lambda: [-ANNOUNCE])  # when, in this process

    def __getitem__(self, item: tuple[int, int]) -> Loaded:
        index, slot = item
        step, part = divmod(index, self.global_batch // (self.micro_batch * self.world_size))
        positions = order.micro_batch_positions(
            step,
            part,
            global_batch=self.global_batch,
            micro_batch=self.micro_batch,
            rank=self.rank,
            world_size=self.world_size,
        )
        if self.split.remote:
            self._announce(positions)
        epochs, rows = self.order.rows(positions)
        seeds = order.sample_seeds(self.order.seed, epochs, rows).tolist()
        images_BHWC = self.slots[slot]
        damaged: list[Damage] = []
        loaded = rows.copy()
        for place, jpeg in self.split.read_all(rows):
            loaded[place] = self._load(int(rows[place]), jpeg, seeds[place], images_BHWC[place], damaged)
        complete = bool((loaded >= 0).all())
        loaded = np.where(loaded >= 0, loaded, rows)
        return Loaded(slot, self.split.labels(loaded), loaded, step, tuple(damaged), complete)

    def _load(self, row: int, jpeg: bytes, seed: int, out: Image, damaged: list[Damage]) -> int:
        """Fill ``out`` with a sample, or where it is damaged with others until one is sound; returns its row.

        -1 where _STAND_INS of them are damaged as well.
        The stand-ins are drawn by the sample's seed, so that they are the same for any number of ranks.
        """
        broken: list[Damage] = []
        while True:
            damage = _damage_of(self.split, row, jpeg, lambda whole: self.transform(whole, seed, out))
            if damage is None:
                damaged += broken
                return row
            broken.append(damage)
            if len(broken) > _STAND_INS:
                damaged += broken
                out[:] = 0
                return -1
            draw = np.random.Generator(np.random.SFC64([seed, len(broken)]))
            row = int(draw.integers(len(self.split)))
            jpeg = self.split.read(row)

    def _announce(self, positions: Ints) -> None:
        """Now and then, the shards that this process is about to need."""
        if time.monotonic() > self.announced[0] + ANNOUNCE:
            self.split.soon(self.order.shards_near(positions))
            self.announced[0] = time.monotonic()


@dataclass(frozen=True)
class EvalBatches(Dataset[Loaded]):
    """Item (k, slot): the k-th batch of the rows congruent to this rank."""

    split: JoinedSplit
    image_size: int
    batch: int
    rank: int
    world_size: int
    resize: str
    slots: Slots

    def __getitem__(self, item: tuple[int, int]) -> Loaded:
        index, slot = item
        first = index * self.batch * self.world_size + self.rank
        rows = np.arange(first, min(first + self.batch * self.world_size, len(self.split)), self.world_size)
        images_BHWC = self.slots[slot]
        damaged: list[Damage] = []
        for place, jpeg in self.split.read_all(rows):
            if damage := _damage_of(self.split, int(rows[place]), jpeg, partial(self._fill, images_BHWC[place])):
                damaged.append(damage)
        return Loaded(slot, self.split.labels(rows), rows, -1, tuple(damaged))

    def _fill(self, out: Image, jpeg: bytes) -> None:
        out[:] = eval_image(jpeg, self.image_size, self.resize)


class Ahead(Iterator[Item]):
    """Items that can be fetched before they are asked for, so that the GPU has work meanwhile."""

    def __init__(self, items: Iterator[Item]):
        self._items = items
        self._ready: list[Item] = []

    def fetch(self) -> None:
        """Wait for the next item, if there is one."""
        if not self._ready:
            self._ready = list(itertools.islice(self._items, 1))

    def __next__(self) -> Item:
        self.fetch()
        if not self._ready:
            raise StopIteration
        return self._ready.pop()


def train_batches(
    split: JoinedSplit,
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
    weights: Sequence[float] = (),
) -> Iterator[Batch]:
    """This rank's micro-batches of the steps from ``start_step`` up to ``stop_step``, in order.

    ``weights``: of the split's datasets; none: all samples alike.
    Raises UserError where hardly any sample decodes: two steps later, so that all ranks have heard of the damage and
    may have stopped in order.
    """
    passes = global_batch // (micro_batch * world_size)
    indices = range(start_step * passes, stop_step * passes)
    slots = slots_for(indices, workers, micro_batch, transform.size)
    batches = TrainMicroBatches(
        split, sampling(split.samples, seed, weights), transform, global_batch, micro_batch, rank, world_size, slots
    )
    last, broken = stop_step, ""
    for loaded in load(batches, indices, slots, workers):
        if loaded.step > last:
            break
        if not loaded.complete and not broken:
            last, broken = loaded.step + 1, str(loaded.damaged[-1])
        yield _batch(loaded, slots)
    if broken:
        raise UserError(
            f"data.train {split.name!r}: {_STAND_INS + 1} samples don't decode, one after another, such as {broken}: "
            "check the dataset with python -m data_prep.verify"
        )


def eval_batches(
    split: JoinedSplit,
    *,
    image_size: int,
    batch: int,
    rank: int,
    world_size: int,
    workers: int,
    resize: str = "square",
) -> Iterator[Batch]:
    """Every sample exactly once over the ranks, in index order; the last batch of a rank may be short or absent.

    Raises UserError for a sample that doesn't decode: nothing can stand in for it where all are counted.
    """
    batch = min(batch, len(split))  # no room for samples that don't exist
    indices = range(-(-len(range(rank, len(split), world_size)) // batch))
    slots = slots_for(indices, workers, batch, image_size)
    items = EvalBatches(split, image_size, batch, rank, world_size, resize, slots)
    for loaded in load(items, indices, slots, workers):
        if loaded.damaged:
            raise UserError(
                f"{split.name}: {loaded.damaged[0]}. Find all such samples with data_prep.verify and make the dataset "
                "again"
            )
        yield _batch(loaded, slots)


def _damage_of(split: JoinedSplit, row: int, jpeg: bytes, use: Callable[[bytes], object]) -> Damage | None:
    """``use`` a sample's JPEG, and where it doesn't decode, a sound copy of it; what is wrong if there is none."""
    try:
        use(split.whole(row, jpeg))
    except ValueError as error:
        if (again := split.read_again(row)) != jpeg:
            return _damage_of(split, row, again, use)
        return _damage(split, row, jpeg, error)
    return None


def _damage(split: JoinedSplit, row: int, jpeg: bytes, error: ValueError) -> Damage:
    """Of a sample, its reason in a word that groups."""
    if len(jpeg) != split.size(row):
        reason = "shard_cut"
    else:
        reason = "undecodable" if jpeg.startswith(b"\xff\xd8") else "no_jpeg"
    cached = split.cached(row)
    doubt = f"; it was read from the cache: delete {str(cached)!r} where the dataset itself is sound" if cached else ""
    return Damage(row, *split.place(row), reason, f"{error}{doubt}")


def _batch(loaded: Loaded, slots: Slots) -> Batch:
    return Batch(
        images_BHWC=slots.copy_out(loaded.slot, len(loaded.labels_B)),
        labels_B=torch.from_numpy(loaded.labels_B),
        samples_B=torch.from_numpy(loaded.samples_B.astype(np.int64)),
        step=loaded.step,
        damaged=loaded.damaged,
    )
