"""Progress for people: a bar on a terminal, a line now and then in a log file. On stderr."""

import collections
import sys
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.core import terminal

LINE_EVERY = 30.0  # seconds between lines where there is no terminal
LAST_LINE_AFTER = 5.0  # seconds: what was shorter needs no line at its end
DRAW_EVERY = 0.1  # seconds


def size(count: int) -> str:
    """Bytes for people: ``23.4 MB``."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


class Bar:
    """Progress over ``total`` things called ``unit``; 0 where nobody knows how many. Use as a context manager."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._bytes = 0
        self._reasons: collections.Counter[str] = collections.Counter()
        self._console = terminal.console(stderr=True)
        self._started = self._last_line = time.monotonic()
        self._last_drawn = 0.0
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
        self._task = self._progress.add_task(what, total=total or None, rate="", rejects="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def report(self, counts: dict[str, int]) -> None:
        """Counts since the last report: ``images`` (the things), ``bytes``, and rejects by reason."""
        for name, count in counts.items():
            if name == "images":
                self._done += count
            elif name == "bytes":
                self._bytes += count
            elif name != "kept":  # shards
                self._reasons[name] += count
        now = time.monotonic()
        if now - self._last_drawn >= DRAW_EVERY:
            self._last_drawn = now
            self._draw()
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self._line(now)

    def _draw(self) -> None:
        self._progress.update(self._task, completed=self._done, rate=self._rate(), rejects=self._rejects())

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        if self._unit == "bytes":
            return f"{self._done / seconds / 1e6:,.0f} MB/s"
        rate = f"{self._done / seconds:,.0f} {self._unit}/s"
        return f"{rate} {self._bytes / seconds / 1e6:,.0f} MB/s" if self._bytes else rate

    def _rejects(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self._reasons.most_common(4))

    def _line(self, now: float) -> None:
        if self._unit == "bytes":
            done, total = f"{self._done / 1e6:,.0f}", f" of {self._total / 1e6:,.0f} MB" if self._total else " MB"
        else:
            done, total = f"{self._done:,}", f" of {self._total:,} {self._unit}" if self._total else f" {self._unit}"
        left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
        remaining = f", {left:,.0f} s left" if left > 0 else ""
        rejects = f", left out: {self._rejects()}" if self._reasons else ""
        print(f"{self._what}: {done}{total}, {self._rate()}{remaining}{rejects}", file=sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        self._progress.stop()
        now = time.monotonic()
        if kind is None and not self._console.is_terminal and now - self._started >= LAST_LINE_AFTER:
            self._line(now)
