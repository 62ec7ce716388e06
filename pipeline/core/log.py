"""Messages of commands and jobs: Python's logging, set up in one place.

Each module logs to ``logging.getLogger(__name__)``. A command writes ``warning: TEXT`` to stderr; a training job writes

    2026-11-29 08:15:02 node3 17/64 warning: TEXT

local time, host, rank/number of ranks, level. Results that other programs read (tables, JSON) are not messages: they
go to stdout. ``VIT_LOG_LEVEL`` is the lowest level that is written: debug, info (the default), warning or error.
"""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator

from pipeline.core.errors import UserError

LEVEL = "VIT_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")
ONCE = {"once": True}  # extra= for a message that is the same on all ranks: only rank 0 logs it
PACKAGES = ("pipeline", "jobs", "data_prep")  # our loggers; those of libraries keep their own handlers


class LineHandler(logging.Handler):
    """Writes each message at once, with :attr:`write`. A full disk must not end a training run."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            self.write(self.format(record))


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")  # one call, so that the lines of ranks that share a file don't mix
    sys.stderr.flush()


_HANDLER = LineHandler(_to_stderr)


def set_up(rank: int = 0, world_size: int = 1, *, stamped: bool = False) -> None:
    """Send our messages to stderr; ``stamped``: with time, host and rank. May be called repeatedly.

    Raises UserError when VIT_LOG_LEVEL is not a level.
    """
    level = os.environ.get(LEVEL) or "info"
    if level.lower() not in LEVELS:
        raise UserError(f"environment variable {LEVEL} is {level!r}: set it to one of {', '.join(LEVELS)}")
    _HANDLER.setFormatter(_Formatter(f"{socket.gethostname()} {rank}/{world_size} " if stamped else ""))
    _HANDLER.filters = [lambda record: rank == 0 or not getattr(record, "once", False)]
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        if _HANDLER not in logger.handlers:
            logger.addHandler(_HANDLER)


class _Formatter(logging.Formatter):
    def __init__(self, who: str) -> None:
        """``who``: host and rank; empty for a command, whose messages have no time and no "info"."""
        prefix = f"%(asctime)s {who}" if who else ""
        super().__init__(f"{prefix}%(level)s%(message)s", "%Y-%m-%d %H:%M:%S")
        self._says_info = bool(who)

    def format(self, record: logging.LogRecord) -> str:
        plain = record.levelno == logging.INFO and not self._says_info
        record.level = "" if plain else f"{record.levelname.lower()}: "
        return super().format(record)


@contextlib.contextmanager
def written_by(write: Callable[[str], object]) -> Iterator[None]:
    """Let ``write`` show messages inside the block: above a progress bar, whose line they would break."""
    former, _HANDLER.write = _HANDLER.write, write
    try:
        yield
    finally:
        _HANDLER.write = former
