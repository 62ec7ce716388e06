"""Retries with growing pauses up to a deadline, and which file-system errors are transient.

Imports no torch.
"""

import errno
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.core.errors import UserError

Item = TypeVar("Item")
READ_SECONDS = 10.0  # time that reading a file is retried: enough for a busy server or a short network outage
READ_PAUSE, READ_LONGEST_PAUSE = 0.05, 2.0  # seconds

# Errors of a network file system or disk that is in trouble. A file's content can't cause them.
_NAMES = """
    EIO ESTALE ETIMEDOUT EINTR EAGAIN EBUSY ENOMEM ENOBUFS ENFILE ENOLCK ENODEV ENXIO EPROTO EREMOTEIO ECOMM ENOLINK
    ECONNRESET ECONNREFUSED ECONNABORTED ENOTCONN ESHUTDOWN EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET
    EKEYEXPIRED ENOKEY
"""  # the last two: a Kerberos ticket that is being renewed
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES.split())


class Backoff:
    """Pauses between attempts: each twice as long as the one before, less a random part, until ``seconds`` have passed.

    The random part (up to half) keeps many processes from querying a recovering server at the same time.
    """

    def __init__(self, first: float, longest: float, seconds: float = math.inf):
        self._first, self._longest, self._seconds = first, longest, seconds
        self.reset()

    def reset(self) -> None:
        """Start over with the shortest pause and the full time, after progress."""
        self._pause, self._began = self._first, time.monotonic()

    def next(self) -> float | None:
        """The next pause in seconds; None if it would end after the deadline."""
        if time.monotonic() - self._began + self._pause > self._seconds:
            return None
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(2 * self._pause, self._longest)
        return pause

    def wait(self) -> bool:
        """Sleep until the next attempt. Returns False at once if the time is over."""
        pause = self.next()
        if pause is not None:
            time.sleep(pause)
        return pause is not None


class UnreadableError(UserError):
    """A file that can't be read at the moment. Unlike other UserErrors, it may affect a single process."""


@dataclass(frozen=True)
class Patience:
    """How long to retry with a server that fails."""

    seconds: float = 600.0  # without any progress until we give up
    pause: float = 0.5  # seconds before the first retry; doubles up to longest_pause
    longest_pause: float = 30.0
    stall: float = 30.0  # seconds without a byte after which a request has failed


class GoneError(UserError):
    """The file is missing, may not be read, or is not the one in dataset.json: a retry doesn't help."""


def steadily(action: Callable[[], Item], path: str | bytes | os.PathLike[str]) -> Item:
    """Call ``action``, retrying after TRANSIENT errors. Raises UnreadableError, which names ``path``, if they persist.

    Other OSErrors are raised at once; those with an errno name ``path``.
    """
    backoff = None
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                if error.errno:  # without errno, a name would replace the message
                    error.filename = error.filename or os.fsdecode(path)
                raise
            backoff = backoff or Backoff(READ_PAUSE, READ_LONGEST_PAUSE, READ_SECONDS)
            if not backoff.wait():
                raise unreadable(path, error) from error


def unreadable(path: str | bytes | os.PathLike[str], error: OSError) -> UnreadableError:
    return UnreadableError(
        f"{os.fsdecode(path)!r} can't be read ({error.strerror}) after {READ_SECONDS:g} s of retries: a disk or file "
        "server error; once it is fixed, run the same command again to resume"
    )


def open_file(path: str | bytes | os.PathLike[str]) -> int:
    """Open for reading; returns the descriptor."""
    return steadily(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)


def pread(descriptor: int, size: int, offset: int, path: str | bytes | os.PathLike[str]) -> bytes:
    """``os.pread`` of the file at ``path``, which is reopened after a transient error, as ESTALE requires."""
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        if error.errno not in TRANSIENT:
            raise

    def again() -> bytes:
        fresh = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(fresh, descriptor, inheritable=False)
        finally:
            os.close(fresh)
        return os.pread(descriptor, size, offset)

    time.sleep(READ_PAUSE)
    return steadily(again, path)
