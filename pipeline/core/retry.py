"""Trying again what may succeed later: growing pauses up to a deadline, and which errors of a file system pass.

Imports no torch.
"""

import errno
import math
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.core.errors import UserError

Item = TypeVar("Item")
READ_SECONDS = 10.0  # for which reading a file is tried again: what a busy server or a short break of the network needs
READ_PAUSE, READ_LONGEST_PAUSE = 0.05, 2.0  # seconds

# What a network file system, or a disk, reports when it is in trouble: nothing that a file's content can cause.
_NAMES = """
    EIO ESTALE ETIMEDOUT EINTR EAGAIN EBUSY ENOMEM ENOBUFS ENFILE ENOLCK ENODEV ENXIO EPROTO EREMOTEIO ECOMM ENOLINK
    ECONNRESET ECONNREFUSED ECONNABORTED ENOTCONN ESHUTDOWN EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET
    EKEYEXPIRED ENOKEY
"""  # the last two: of a Kerberos ticket that is just being renewed
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES.split())


class Backoff:
    """Pauses between attempts: each twice as long as the one before, less a random part, until ``seconds`` have passed.

    The random part (up to half) keeps many processes from asking a recovering server at the same moment.
    """

    def __init__(self, first: float, longest: float, seconds: float = math.inf):
        self._first, self._longest, self._seconds = first, longest, seconds
        self.reset()

    def reset(self) -> None:
        """There was progress: begin again with the shortest pause and all of the time."""
        self._pause, self._began = self._first, time.monotonic()

    def next(self) -> float | None:
        """The next pause in seconds; None if it would end after the deadline."""
        if time.monotonic() - self._began + self._pause > self._seconds:
            return None
        pause = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(2 * self._pause, self._longest)
        return pause

    def wait(self) -> bool:
        """Sleep until the next attempt. False, at once, if the time is over."""
        pause = self.next()
        if pause is not None:
            time.sleep(pause)
        return pause is not None


class UnreadableError(UserError):
    """A file that the system can't read just now. Unlike other UserErrors it may be one process's alone."""


def steadily(action: Callable[[], Item], path: str | bytes | os.PathLike[str]) -> Item:
    """``action()``, tried again after TRANSIENT errors. Raises UnreadableError, which names ``path``, if they last.

    Other OSErrors are raised at once, and those of the system name ``path``.
    """
    backoff = None
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                if error.errno:  # those without are in words, which a name would replace
                    error.filename = error.filename or os.fsdecode(path)
                raise
            backoff = backoff or Backoff(READ_PAUSE, READ_LONGEST_PAUSE, READ_SECONDS)
            if not backoff.wait():
                raise unreadable(path, error) from error


def unreadable(path: str | bytes | os.PathLike[str], error: OSError) -> UnreadableError:
    return UnreadableError(
        f"{os.fsdecode(path)!r} can't be read ({error.strerror}), tried for {READ_SECONDS:g} s: the disk or its server "
        "is in trouble; once it answers, run the same command again, which resumes"
    )


def open_file(path: str | bytes | os.PathLike[str]) -> int:
    """A descriptor for reading."""
    return steadily(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)


def pread(descriptor: int, size: int, offset: int, path: str | bytes | os.PathLike[str]) -> bytes:
    """``os.pread`` of the file at ``path``, which is opened anew after a transient error, as ESTALE needs it."""
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
