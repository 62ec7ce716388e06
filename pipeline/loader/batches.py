"""The loader: reads the samples that order.py chooses at their offsets in the tars and decodes them in workers.

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
ANNOUNCE = 1.0  # seconds between announcements of the shards that come next
_STAND_INS = 20  # damaged replacements in a row before the dataset counts as broken


@dataclass(frozen=True)
class Batch:
    images_BHWC: torch.Tensor  # uint8
    labels_B: torch.Tensor  # int64
    samples_B: torch.Tensor  # int64, row of the sample within its split
    step: int  # optimizer step, from 0; -1 in evaluation
    damaged: tuple[Damage, ...] = ()  # samples that were replaced by others


class Loaded(NamedTuple):
    """A batch whose images are in a slot of shared memory."""

    slot: int
    labels_B: Ints
    samples_B: Ints
    step: int
    damaged: tuple[Damage, ...] = ()
    complete: bool = True  # False: a damaged sample could not be replaced; its image is black


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
        """Fill ``out`` with a sample, or if it is damaged with a replacement that is not; returns the row used.

        Returns -1 if _STAND_INS replacements are damaged as well. Replacements are drawn with the sample's seed, so
        they are the same for any number of ranks.
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
        """Announce the shards that this process will need next, at most every ANNOUNCE seconds."""
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
    """An iterator whose next item can be fetched early, while the GPU still has work."""

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

    ``weights``: one per dataset of the split; empty: all samples alike.
    Raises UserError if hardly any sample can be decoded: two steps later, so that all ranks know of the damage and can
    stop in order first.
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
            f"data.train {split.name!r}: {_STAND_INS + 1} consecutive samples can't be decoded, such as {broken}: "
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

    Raises UserError for a sample that can't be decoded: an exact evaluation can't replace it.
    """
    batch = min(batch, len(split))  # otherwise memory would be reserved for samples that don't exist
    indices = range(-(-len(range(rank, len(split), world_size)) // batch))
    slots = slots_for(indices, workers, batch, image_size)
    items = EvalBatches(split, image_size, batch, rank, world_size, resize, slots)
    for loaded in load(items, indices, slots, workers):
        if loaded.damaged:
            raise UserError(
                f"{split.name}: {loaded.damaged[0]}. Find all such samples with vit verify and make the dataset again"
            )
        yield _batch(loaded, slots)


def _damage_of(split: JoinedSplit, row: int, jpeg: bytes, use: Callable[[bytes], object]) -> Damage | None:
    """``use`` a sample's JPEG, or an intact copy if it can't be decoded; returns the damage if there is none."""
    try:
        use(split.whole(row, jpeg))
    except ValueError as error:
        if (again := split.read_again(row)) != jpeg:
            return _damage_of(split, row, again, use)
        return _damage(split, row, jpeg, error)
    return None


def _damage(split: JoinedSplit, row: int, jpeg: bytes, error: ValueError) -> Damage:
    """The damage of a sample, with its reason as one word."""
    if len(jpeg) != split.size(row):
        reason = "shard_cut"
    else:
        reason = "undecodable" if jpeg.startswith(b"\xff\xd8") else "no_jpeg"
    cached = split.cached(row)
    doubt = f"; it was read from the cache: delete {str(cached)!r} if the dataset itself is sound" if cached else ""
    return Damage(row, *split.place(row), reason, f"{error}{doubt}")


def _batch(loaded: Loaded, slots: Slots) -> Batch:
    return Batch(
        images_BHWC=slots.copy_out(loaded.slot, len(loaded.labels_B)),
        labels_B=torch.from_numpy(loaded.labels_B),
        samples_B=torch.from_numpy(loaded.samples_B.astype(np.int64)),
        step=loaded.step,
        damaged=loaded.damaged,
    )
