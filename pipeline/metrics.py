"""What the loop measures of itself: speed, waiting, remaining time."""

import time
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Rates since the last :meth:`lap`. Times in seconds."""

    samples_per_step: int
    ranks: int
    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waited: float = 0.0  # for data
    paused: float = 0.0  # in evaluation and checkpoints

    def lap(self) -> dict[str, float]:
        """Metrics of the steps since the last lap; starts the next one."""
        now = time.perf_counter()
        busy = max(now - self.started - self.paused, 1e-9)
        rate = self.steps * self.samples_per_step / busy
        metrics = {
            "speed/images_per_second": rate,
            "speed/images_per_second_per_rank": rate / self.ranks,
            "speed/step_seconds": busy / max(self.steps, 1),
            "speed/data_wait": self.waited / busy,  # fraction of the time
        }
        self.started, self.steps, self.waited, self.paused = now, 0, 0.0, 0.0
        return metrics


def duration(seconds: float) -> str:
    """``1d 02:03:04``, ``02:03:04`` or ``03:04``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{minute:02d}:{second:02d}"
    if hours:
        text = f"{hour:02d}:{text}"
    return f"{days}d {text}" if days else text
