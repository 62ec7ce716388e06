"""The sample ledger of a run: RUN/ledger.txt, one line per optimizer step: step (from 1) and hash of its samples.

A resumed run repeats the steps since its checkpoint, so a step may have several lines; they must agree. Imports no
torch.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.loader.mixture import Mixture
from pipeline.loader.order import Order, ledger_hash
from pipeline.runs.folder import LEDGER
from pipeline.runs.records import Appender

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # positions at a time


@dataclass(frozen=True)
class Audit:
    """The result of checking a ledger."""

    steps: int  # distinct steps that were recorded
    repeated: int  # lines of steps that were repeated after a resume
    missing: list[int]  # steps before the last that have no line
    wrong: list[int]  # steps whose samples differ from the order
    epochs: list[int]  # per dataset with its own order: complete epochs in which each sample occurred exactly once
    samples: list[int]  # samples per epoch of each


@contextmanager
def appending(run_dir: Path, *, wanted: bool = True) -> Iterator[Callable[[int, int], object]]:
    """Yield a function that appends a step's line immediately, or does nothing unless ``wanted``.

    The file stays open, since a network file system sends a file to its server when it is closed. A partial line from a
    crash is removed first. If the disk is full, lines wait in memory.
    """
    if not wanted:
        yield lambda step, value: None  # noqa: ARG005
        return
    file = Appender(run_dir / LEDGER)
    try:
        yield lambda step, value: file.append(f"{step} {value:010x}\n".encode())
    finally:
        file.close()
        if file.waiting:
            logger.error("%d line(s) of %s are lost: %s", len(file.waiting), file.path, file.fault)


def read(run_dir: Path) -> list[tuple[int, int]]:
    """(step, hash) of each line; a partial line from a crash is skipped."""
    found = []
    for line in (run_dir / LEDGER).read_text(encoding="utf-8").splitlines(keepends=True):
        step, _, value = line.partition(" ")
        if line.endswith("\n") and len(value) == 11 and step.isdigit():
            found.append((int(step), int(value, 16)))
    return found


def audit(lines: list[tuple[int, int]], order: Order | Mixture, global_batch: int) -> Audit:
    """Compare with the order, and count each sample of every epoch that the steps cover completely."""
    steps = sorted({step for step, _ in lines})
    last = steps[-1] if steps else 0
    expected = dict(enumerate(_hashes(order, global_batch, last), start=1))
    wrong = sorted({step for step, value in lines if expected.get(step) != value})
    missing = sorted(set(range(1, last + 1)) - set(steps))
    sound = min([last + 1, *missing, *wrong]) - 1  # steps up to the first gap
    orders = order.orders if isinstance(order, Mixture) else (order,)
    epochs = order.whole_epochs(sound * global_batch)
    for part, count in zip(orders, epochs, strict=True):
        for epoch in range(count):
            if not each_once(part, epoch):
                raise RuntimeError(f"the order of epoch {epoch} is not a permutation of its samples")
    return Audit(len(steps), len(lines) - len(steps), missing, wrong, epochs, [part.samples for part in orders])


def each_once(order: Order, epoch: int) -> bool:
    """Whether an epoch of the order contains each sample exactly once."""
    seen = np.zeros(order.samples, bool)
    for start in range(0, order.samples, _CHUNK):
        positions = np.arange(start, min(start + _CHUNK, order.samples), dtype=np.int64) + epoch * order.samples
        seen[order.rows(positions)[1]] = True
    return bool(seen.all())  # there are as many positions as samples, so if all are seen, each is seen once


def _hashes(order: Order | Mixture, global_batch: int, steps: int) -> Iterator[int]:
    chunk = max(1, _CHUNK // global_batch)
    for first in range(0, steps, chunk):
        count = min(chunk, steps - first)
        positions = np.arange(first * global_batch, (first + count) * global_batch, dtype=np.int64)
        for rows in order.rows(positions)[1].reshape(count, global_batch):
            yield ledger_hash(rows)
