"""Loss spikes and slow ranks, from the numbers of each step."""

import math
import statistics
from collections import deque
from collections.abc import Sequence

SPIKE_WINDOW = 200  # number of previous steps that a loss is compared with
SPIKE_DEVIATIONS = 6.0  # robust standard deviations above the median: one step in a billion if losses were normal
STRAGGLER = 1.5  # times the median rank's own time
STRAGGLER_SHARE = 0.05  # ... and by at least this fraction of a step: less isn't worth a warning
STRAGGLER_STEPS = 20  # fewer steps are not conclusive


class Spikes:
    """Finds losses far above the previous ones."""

    def __init__(self) -> None:
        self.count = 0
        self._recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self._limit = math.inf
        self._age = 0  # steps since the limit was computed

    def see(self, loss: float) -> str | None:
        """A report if ``loss`` is a spike, else None."""
        report = None
        if loss > self._limit:
            self.count += 1
            report = (
                f"loss {loss:.4f} is a spike (expected below {self._limit:.4f} from the {len(self._recent)} before)"
            )
        self._recent.append(loss)  # spikes too: a few don't move the median, and many are the new level
        self._age += 1
        if self._age >= SPIKE_WINDOW // 10 and len(self._recent) >= SPIKE_WINDOW // 4:
            self._age = 0
            median = statistics.median(self._recent)
            deviation = 1.4826 * statistics.median(abs(value - median) for value in self._recent)
            self._limit = median + max(SPIKE_DEVIATIONS * deviation, 0.01 * abs(median))
        return report


def stragglers(own: Sequence[Sequence[float]], step_seconds: float, hosts: Sequence[str]) -> list[str]:
    """Warnings about ranks that the others wait for. ``own``: one row per step, seconds by rank."""
    if len(own) < STRAGGLER_STEPS or len(hosts) < 2:
        return []
    medians = [statistics.median(column) for column in zip(*own, strict=True)]
    usual = statistics.median_low(medians)
    return [
        f"rank {rank} on {hosts[rank]} is slow: {median:.3f} s of its own per step, {usual:.3f} s is usual"
        for rank, median in enumerate(medians)
        if median > STRAGGLER * usual and median - usual > STRAGGLER_SHARE * step_seconds
    ]
