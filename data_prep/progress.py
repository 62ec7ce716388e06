"""Progress for people: a bar on a terminal, a line now and then in a log file. On stderr."""

import collections
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Bar:
    """Progress over ``total`` things called ``unit``. Use as a context manager."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._bytes = 0
        self._reasons: collections.Counter[str] = collections.Counter()
        self._console = Console(stderr=True)
        self._started = self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rejects]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total, rate="", rejects="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def report(self, counts: dict[str, int]) -> None:
        """Counts since the last report: ``images``, ``bytes``, and rejects by reason."""
        counts = dict(counts)
        self._bytes += counts.pop("bytes", 0)
        done = counts.pop("images", 0)
        self._reasons.update(counts)
        self.advance(done)

    def advance(self, count: int) -> None:
        self._done += count
        self._progress.update(self._task, completed=self._done, rate=self._rate(), rejects=self._rejects())
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self._line(now)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = f"{self._done / seconds:,.0f} {self._unit}/s"
        return f"{rate} {self._bytes / seconds / 1e6:,.0f} MB/s" if self._bytes else rate

    def _rejects(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common(4))

    def _line(self, now: float) -> None:
        left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
        rejects = f", left out: {self._rejects()}" if self._reasons else ""
        print(
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {self._rate()}, "
            f"{left:,.0f} s left{rejects}",
            file=sys.stderr,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind is None and not self._console.is_terminal:
            self._line(time.monotonic())
