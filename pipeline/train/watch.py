"""Watching the losses and the ranks: what may not pass in silence, and what it says.

Pure but for the dump and the watchdog.
"""

import faulthandler
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline.core.tensor_files import save_tensors
from pipeline.loader.batches import Batch

SPIKE_WINDOW = 200  # steps that a loss is compared with
SPIKE_DEVIATIONS = 6.0  # robust standard deviations above the median: one step in a billion, were the losses normal
STRAGGLER = 1.5  # times the usual rank's own time
STRAGGLER_SHARE = 0.05  # ... and by at least this share of a step, or nobody would notice
STRAGGLER_STEPS = 20  # fewer say nothing


class NonFiniteError(RuntimeError):
    """Training has met a loss or gradient that is no number, and may not skip it."""


@dataclass(frozen=True)
class Step:
    """What an optimizer step left; the same on every rank but for ``fed``."""

    loss: float  # mean over the global batch
    norm: float  # of the gradient, before clipping
    skipped: bool  # the weights are those before the step
    losses: list[float]  # by rank: the mean over its share of the batch
    own: list[float]  # by rank: seconds of the step before, without waiting for others
    stopping: list[int]  # ranks that were asked to stop
    save: bool  # rank 0 asks for a checkpoint
    fed: list[Batch] = field(repr=False)  # of this rank
    ledger: int = 0  # hash of the global batch's samples (pipeline.runs.sample_ledger)
    damaged: int = 0  # times that a sample didn't decode, on all ranks

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm) and not self.skipped

    @property
    def culprits(self) -> list[int]:
        """Ranks whose own loss is no number; every rank where only the gradient isn't."""
        bad = [rank for rank, loss in enumerate(self.losses) if not math.isfinite(loss)]
        return bad or list(range(len(self.losses)))


def describe_nonfinite(done: Step, step: int, hosts: Sequence[str]) -> str:
    """One line: what happened at ``step`` (counted from 1), and on which ranks."""
    named = ", ".join(f"rank {rank} on {hosts[rank]} (loss {done.losses[rank]:.4g})" for rank in done.culprits)
    where = named if any(not math.isfinite(loss) for loss in done.losses) else "all ranks' losses are finite"
    return f"step {step}: loss {done.loss:.4g}, gradient norm {done.norm:.4g}: {where}"


def dump(folder: Path, step: int, rank: int, batches: Sequence[Batch], keys: Sequence[str]) -> Path:
    """Write the images (uint8), labels and rows that this rank was fed in ``step``; the samples' keys as metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}-rank-{rank:03d}.safetensors"
    tensors = {
        "images_BHWC": torch.cat([batch.images_BHWC for batch in batches]),
        "labels_B": torch.cat([batch.labels_B for batch in batches]),
        "samples_B": torch.cat([batch.samples_B for batch in batches]),
    }
    save_tensors(tensors, path, {"keys": "\n".join(keys)})
    return path


class Watchdog:
    """Ends this process, after printing all stacks, when it isn't fed for ``timeout`` seconds, or 1 % less.

    Each new limit takes a new thread, which costs more than the rest of a step's checks: so not every meal moves it.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._moved = -math.inf

    def feed(self) -> None:
        now = time.monotonic()
        if now - self._moved >= 0.01 * self._timeout:
            faulthandler.dump_traceback_later(self._timeout, exit=True)
            self._moved = now


class Spikes:
    """Tells a loss that stands out from those before it."""

    def __init__(self) -> None:
        self.count = 0
        self._recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._limit = math.inf
        self._age = 0  # steps since the limit was worked out

    def see(self, loss: float) -> str | None:
        """A report where ``loss`` is a spike, else None."""
        report = None
        if loss > self._limit:
            self.count += 1
            report = (
                f"loss {loss:.4f} stands out from the {len(self._recent)} before (expected below {self._limit:.4f})"
            )
        self._recent.append(loss)  # spikes, too: few don't move the median, and many are the new level
        self._age += 1
        if self._age >= SPIKE_WINDOW // 10 and len(self._recent) >= SPIKE_WINDOW // 4:
            self._age = 0
            median = statistics.median(self._recent)
            deviation = 1.4826 * statistics.median(abs(value - median) for value in self._recent)
            self._limit = median + max(SPIKE_DEVIATIONS * deviation, 0.01 * abs(median))
        return report


def stragglers(own: Sequence[Sequence[float]], step_seconds: float, hosts: Sequence[str]) -> list[str]:
    """Ranks that the others wait for, in words. ``own``: a row a step, seconds by rank."""
    if len(own) < STRAGGLER_STEPS or len(hosts) < 2:
        return []
    medians = [statistics.median(column) for column in zip(*own, strict=True)]
    usual = statistics.median_low(medians)
    return [
        f"rank {rank} on {hosts[rank]} is slow: {median:.3f} s of its own a step, usual are {usual:.3f} s"
        for rank, median in enumerate(medians)
        if median > STRAGGLER * usual and median - usual > STRAGGLER_SHARE * step_seconds
    ]
