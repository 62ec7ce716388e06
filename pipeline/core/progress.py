"""Progress of long work, on stderr: a bar on a terminal, otherwise a log line every 30 seconds."""

import logging
import math
import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.core import log, terminal
from pipeline.core.units import duration

logger = logging.getLogger(__name__)

LINE_EVERY = 30.0  # seconds between lines when there is no terminal
LAST_LINE_AFTER = 5.0  # seconds; shorter work needs no line at its end
DRAW_EVERY = 0.1  # seconds


def describe(done: int, total: int, unit: str, seconds: float, *, start: int = 0, note: str = "") -> str:
    """The text of a bar or line: ``12/40 images, 3.1 images/s, ETA 00:09, NOTE``.

    ``done`` of ``total`` items, called ``unit``; ``total`` is 0 if unknown. The items after ``start`` took
    ``seconds``; their mean rate gives the ETA. The unit "bytes" is shown in MB.
    """
    fresh = max(done - start, 0)
    rate = fresh / max(seconds, 1e-9)
    left = math.ceil((total - done) / rate) if fresh else 0
    if unit == "bytes":
        text = f"{done / 1e6:,.0f}/{total / 1e6:,.0f} MB" if total else f"{done / 1e6:,.0f} MB"
        unit, rate = "MB", rate / 1e6
    else:
        text = f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"
    if fresh:
        text += f", {rate:,.0f} {unit}/s" if rate >= 10 else f", {rate:.2g} {unit}/s"
    if left > 0:
        text += f", ETA {duration(left)}"
    return f"{text}, {note}" if note else text


class Bar:
    """Progress over ``total`` items, called ``unit``; ``total`` is 0 if unknown. Use as a context manager.

    ``start``: number of items done before. ``shown``: False on ranks other than 0, which show nothing. ``lines``: False
    if the work logs its own lines, so that only the bar is wanted. Log messages appear above the bar.
    """

    def __init__(
        self, what: str, total: int, unit: str, *, start: int = 0, shown: bool = True, lines: bool = True
    ) -> None:
        self._what, self._total, self._unit, self._start = what, total, unit, start
        self._done, self._note = start, ""
        self._began = self._last_line = time.monotonic()
        self._last_drawn = 0.0
        self._console = terminal.console(stderr=True)
        self._drawn = (  # FORCE_COLOR makes rich treat a file as a terminal
            shown and sys.stderr.isatty() and self._console.is_terminal and not self._console.is_dumb_terminal
        )
        self._lines = shown and lines and not self._drawn
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=self._console,
            disable=not self._drawn,
            redirect_stdout=sys.stdout.isatty(),  # else results would go to the terminal instead of the user's file
        )
        self._task = self._progress.add_task(what, total=total or None, completed=start, state="")
        self._open = ExitStack()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def __enter__(self) -> Self:
        if self._drawn:
            self._open.enter_context(log.written_by(self._print_above))
            self._open.enter_context(self._progress)
            terminal.escape_output()  # rich's redirection would interpret colours and links in printed text
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report ``count`` more items done."""
        self.update(self._done + count, note)

    def update(self, done: int, note: str = "") -> None:
        """Report ``done`` items done in all; at most the total is shown."""
        self._done = min(done, self._total) if self._total else done
        self._note = note
        now = time.monotonic()
        if self._drawn and now - self._last_drawn >= DRAW_EVERY:
            self._last_drawn = now
            self._draw()
        if self._lines and now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self._write_line()

    def _state(self) -> str:
        return describe(self._done, self._total, self._unit, self.seconds, start=self._start, note=self._note)

    def _draw(self) -> None:
        self._progress.update(self._task, completed=self._done, state=self._state())

    def _write_line(self) -> None:
        logger.info("%s: %s", self._what, self._state())

    def _print_above(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._draw()
        self._open.close()
        if kind is None and self._lines and self.seconds >= LAST_LINE_AFTER:
            self._write_line()
