"""The loader: the samples that pipeline.order names, read at their offsets in the tars, decoded in worker processes.

B batch, H W pixels, C channels.
"""

import atexit
import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline import order
from pipeline.cli import UserError
from pipeline.config import Resize
from pipeline.damage import Damage
from pipeline.jpeg import Image
from pipeline.mixture import Mixture, sampling
from pipeline.order import Ints, Order
from pipeline.slots import Slots
from pipeline.split import Split
from pipeline.transforms import TrainTransform, eval_image

Item = TypeVar("Item")
ANNOUNCE = 1.0  # seconds between looks at the shards that come next
_STAND_INS = 20  # in a row, each damaged too, before the data set is called broken
_AHEAD = 2  # batches that each worker prepares before they are asked for; more would not fit the processor's cache
_ARENA = 16 << 20  # bytes that a worker may keep for reuse


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

    split: Split
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

    split: Split
    image_size: int
    batch: int
    rank: int
    world_size: int
    resize: Resize
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
    weights: Sequence[float] = (),
) -> Iterator[Batch]:
    """This rank's micro-batches of the steps from ``start_step`` up to ``stop_step``, in order.

    ``weights``: of the split's data sets; none: all samples alike.
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
            "check the data set with python -m data_prep.verify"
        )


def eval_batches(
    split: Split,
    *,
    image_size: int,
    batch: int,
    rank: int,
    world_size: int,
    workers: int,
    resize: Resize = "square",
) -> Iterator[Batch]:
    """Every sample exactly once over the ranks, in index order; the last batch of a rank may be short or absent.

    Raises UserError for a sample that doesn't decode: nothing can stand in for it where all are counted.
    """
    indices = range(-(-len(range(rank, len(split), world_size)) // batch))
    slots = slots_for(indices, workers, batch, image_size)
    items = EvalBatches(split, image_size, batch, rank, world_size, resize, slots)
    for loaded in load(items, indices, slots, workers):
        if loaded.damaged:
            raise UserError(
                f"{split.name}: {loaded.damaged[0]}. Find all such samples with data_prep.verify and make the data set "
                "again"
            )
        yield _batch(loaded, slots)


def slots_for(indices: range, workers: int, batch: int, size: int) -> Slots:
    """Room for the batches that ``load``'s workers prepare."""
    return Slots(_AHEAD * min(workers, len(indices)), batch, size)


def normalise(images_BHWC: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 images -> x_BCHW in [-1, 1], on the images' device: (x - 127.5) / 127.5."""
    return ((images_BHWC.to(torch.float32) - 127.5) / 127.5).to(dtype).permute(0, 3, 1, 2).contiguous()


def load(
    batches: Dataset[Item],
    indices: range,
    slots: Slots,
    workers: int,
    *,
    ignoring: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1),
    setting: str = "data.workers",
) -> Iterator[Item]:
    """The items of ``indices``, each with a slot, in order, made in ``workers`` processes that leave with this one.

    With no workers they are made in this process.

    ``ignoring``: signals that are for this process to decide; by default Slurm's, which reach every process of a task.
    ``setting``: where the number of workers was set, for the message of the RuntimeError when one of them dies.
    A UserError of a worker is raised as it is.
    """
    loader: DataLoader[Any] = DataLoader(
        _UserErrorsToo(batches),
        batch_size=None,
        sampler=slots.claim(indices),
        num_workers=min(workers, len(indices)),
        collate_fn=_same,
        worker_init_fn=partial(_start_worker, os.getpid(), ignoring),
        multiprocessing_context="fork" if workers and len(indices) else None,  # what Slots needs
        prefetch_factor=_AHEAD if workers and len(indices) else None,
        generator=torch.Generator(),  # its own: from torch's, a start of the loader would take what dropout draws
    )
    others = multiprocessing.active_children()
    with _deaths_of_workers(setting):
        items = iter(loader)
        _hold_back_deaths()
    own = [child for child in multiprocessing.active_children() if child not in others]
    while True:
        with _deaths_of_workers(setting):
            for worker in own:
                if not worker.is_alive():
                    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) has exit code {worker.exitcode}")
            item = next(items, None)
        if item is None:
            return
        if isinstance(item, UserError):
            raise item
        yield item


class _UserErrorsToo(Dataset[Any]):
    """A data set's items, and as items the UserErrors: torch would make a traceback of them."""

    def __init__(self, items: Dataset[Any]):
        self._items = items

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._items[index]
        except UserError as error:
            return error


_waiting = False  # for a loader worker, just now
_former: Callable[[int, FrameType | None], Any]  # handler of SIGCHLD


@contextmanager
def _deaths_of_workers(setting: str) -> Iterator[None]:
    """While a worker is waited for: say in our words that one has died."""
    global _waiting  # noqa: PLW0603
    _waiting = True
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # else it is what a worker raised
            raise
        raise RuntimeError(
            f"a loader worker has died ({error}). Mostly the node ran out of memory: lower {setting} or ask for more"
        ) from error
    finally:
        _waiting = False


def _hold_back_deaths() -> None:
    """Make torch's handler of SIGCHLD, which raises wherever this process is just then, do so only where one waits.

    Otherwise the next wait finds the worker dead. Nothing is said of workers that this process has ended itself.
    """
    global _former  # noqa: PLW0603
    found = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is threading.main_thread() and callable(found) and found is not _on_child:
        _former = found
        signal.signal(signal.SIGCHLD, _on_child)


def _on_child(number: int, frame: FrameType | None) -> None:
    try:
        _former(number, frame)
    except RuntimeError:
        if _waiting:
            raise


def _same(batch: Any) -> Any:
    return batch


def _start_worker(parent: int, ignoring: Sequence[signal.Signals], worker: int) -> None:  # noqa: ARG001
    for number in ignoring:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    cv2.setNumThreads(0)
    # glibc hands freed memory back to the kernel above a threshold, 128 KiB at first, so that each image's bytes would
    # come from fresh pages, which costs more than reading them. Freeing a large block raises the threshold.
    bytes(_ARENA)
    gc.freeze()  # what was there before isn't garbage: no need to look at it again and again


def _leave_with(parent: int) -> None:
    """A killed process can't stop its workers, which may be waiting for a server: each looks if it is still there."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@atexit.register
def _end_workers() -> None:
    """Runs before multiprocessing's own exit handler, which would send SIGTERM to the workers and wait for ever."""
    for child in multiprocessing.active_children():
        child.kill()


def _damage_of(split: Split, row: int, jpeg: bytes, use: Callable[[bytes], object]) -> Damage | None:
    """``use`` a sample's JPEG, and where it doesn't decode, a sound copy of it; what is wrong if there is none."""
    try:
        use(split.whole(row, jpeg))
    except ValueError as error:
        if (again := split.read_again(row)) != jpeg:
            return _damage_of(split, row, again, use)
        return _damage(split, row, jpeg, error)
    return None


def _damage(split: Split, row: int, jpeg: bytes, error: ValueError) -> Damage:
    """Of a sample, its reason in a word that groups."""
    if len(jpeg) != split.size(row):
        reason = "shard_cut"
    else:
        reason = "undecodable" if jpeg.startswith(b"\xff\xd8") else "no_jpeg"
    cached = split.cached(row)
    doubt = f"; it was read from the cache: delete {str(cached)!r} where the data set itself is sound" if cached else ""
    return Damage(row, *split.place(row), reason, f"{error}{doubt}")


def _batch(loaded: Loaded, slots: Slots) -> Batch:
    return Batch(
        images_BHWC=slots.taken(loaded.slot, len(loaded.labels_B)),
        labels_B=torch.from_numpy(loaded.labels_B),
        samples_B=torch.from_numpy(loaded.samples_B.astype(np.int64)),
        step=loaded.step,
        damaged=loaded.damaged,
    )
