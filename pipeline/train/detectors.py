"""Loss spikes and slow ranks, from the numbers of each step."""

import math
import statistics
from collections import deque
from collections.abc import Sequence

SPIKE_WINDOW = 200  # steps that a loss is compared with
SPIKE_DEVIATIONS = 6.0  # robust standard deviations above the median: one step in a billion, were the losses normal
STRAGGLER = 1.5  # times the usual rank's own time
STRAGGLER_SHARE = 0.05  # ... and by at least this share of a step, or nobody would notice
STRAGGLER_STEPS = 20  # fewer say nothing


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
