"""The loop's measurements: speed, waiting for data, time per activity, remaining time."""

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

Part = Literal["training", "data", "evaluation", "checkpoint", "undone"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass
class Stopwatch:
    """Rates since the last :meth:`lap`, and seconds per activity since the attempt's start."""

    samples_per_step: int
    ranks: int
    flops_per_sample: float = 0.0  # of training
    peak: float = 0.0  # FLOP/s of one rank's device
    seconds: dict[Part, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    own: float = 0.0  # seconds of the latest step before this rank had to wait for others
    steps: list[float] = field(default_factory=list)  # seconds of each step of the lap
    waited: float = 0.0  # seconds of the lap spent waiting for data
    _step_began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def time(self, part: Part) -> Iterator[None]:
        """Account for time outside steps: an evaluation or a checkpoint."""
        began = time.perf_counter()
        try:
            yield
        finally:
            pause = time.perf_counter() - began
            self.seconds[part] += pause
            self._step_began += pause

    def step(self, waited: float, own: float) -> None:
        """Record the step that ends now, including the loop's own work since the last one.

        ``waited``: seconds of the step spent waiting for data. ``own``: see :attr:`own`.
        """
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        self.steps.append(seconds)
        self.waited += waited
        self.own = own
        self.seconds["training"] += seconds - waited
        self.seconds["data"] += waited

    def undo(self, training: float) -> None:
        """Count the training seconds beyond ``training`` as lost, after a roll-back."""
        self.seconds["undone"] += self.seconds["training"] - training
        self.seconds["training"] = training

    def account(self) -> dict[str, float]:
        """Seconds per activity so far, as metrics."""
        return {f"seconds/{part}": seconds for part, seconds in self.seconds.items()}

    def lap(self) -> dict[str, float]:
        """Metrics of the steps since the last lap; starts the next one."""
        busy = max(sum(self.steps), 1e-9)
        rate = len(self.steps) * self.samples_per_step / busy
        ordered = sorted(self.steps) or [0.0]
        metrics = {
            "speed/images_per_second": rate,
            "speed/images_per_second_per_rank": rate / self.ranks,
            "speed/step_seconds": busy / max(len(self.steps), 1),
            "speed/step_p50": percentile(ordered, 0.5),
            "speed/step_p95": percentile(ordered, 0.95),
            "speed/step_max": ordered[-1],
            "speed/data_wait": self.waited / busy,  # fraction of the time
            "memory/peak_gb": peak_memory() / 1e9,
            **self.account(),
        }
        if self.peak:
            metrics["speed/mfu"] = rate / self.ranks * self.flops_per_sample / self.peak
        self.steps, self.waited = [], 0.0
        return metrics


def percentile(ordered: list[float], fraction: float) -> float:
    """A percentile of sorted values, by the nearest-rank method."""
    return ordered[max(math.ceil(fraction * len(ordered)) - 1, 0)]


def peak_memory() -> float:
    """Peak memory in bytes: torch's on this rank's GPU, or this process's if there is no GPU."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
