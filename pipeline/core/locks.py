"""File locks (flock) between processes. A lock is released when its process ends, however it ends.

Waiting always has a limit. On a file system without locks (some NFS, FUSE and cluster mounts) the caller continues
without a lock, after one warning.
"""

import enum
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core import log
from pipeline.core.errors import UserError
from pipeline.core.retry import Backoff

WAIT = 3600.0  # seconds to wait for another process, which may be downloading an index of gigabytes
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds between two attempts
SAID_AFTER = 10.0  # seconds of waiting before a message names the lock

logger = logging.getLogger(__name__)
_warned: set[int] = set()  # file systems (st_dev) for which the warning was given


class Lock(enum.Enum):
    """The result of a request for a lock."""

    HELD = "held"
    TAKEN = "taken"  # another process holds it
    UNAVAILABLE = "unavailable"  # the file system has no locks, or none for this descriptor


def try_lock(descriptor: int, path: Path, *, shared: bool = False) -> Lock:
    """Request the lock of the open file ``path`` without waiting. A lock that is already held is converted.

    UNAVAILABLE stands for EBADF, which NFS returns for an exclusive lock on a read-only descriptor (flock(2)), and for
    ENOLCK, ENOSYS, EOPNOTSUPP and EINVAL, which file systems without locks return.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        if error.errno != errno.EBADF:
            _warn(descriptor, path, error)
        return Lock.UNAVAILABLE
    return Lock.HELD


def wait_for_lock(descriptor: int, path: Path, *, shared: bool = False, seconds: float = WAIT) -> Lock:
    """Request the lock until no other process holds it: HELD or UNAVAILABLE. Raises UserError after ``seconds``."""
    backoff, said = Backoff(FIRST_PAUSE, LONGEST_PAUSE, seconds), Backoff(0, 0, SAID_AFTER)
    waiting = False
    while (lock := try_lock(descriptor, path, shared=shared)) is Lock.TAKEN:
        if not waiting and said.next() is None:
            logger.info("waiting for another process that holds the lock of %r", str(path))
            waiting = True
        if not backoff.wait():
            raise UserError(
                f"{str(path)!r} has been locked by another process for {seconds:g} s: end that process, then run again"
            )
    return lock


def still_names(path: Path, descriptor: int) -> bool:
    """Whether ``path`` is still the open file, which another process may have deleted before it was locked."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, *, seconds: float = WAIT) -> Iterator[Lock]:
    """Hold the lock of the file ``path``, which is created if needed; yields HELD or UNAVAILABLE.

    Raises UserError if another process holds it for ``seconds``, OSError if the file can't be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield wait_for_lock(descriptor, path, seconds=seconds)
    finally:
        os.close(descriptor)


def _warn(descriptor: int, path: Path, error: OSError) -> None:
    device = os.fstat(descriptor).st_dev
    if device not in _warned:
        _warned.add(device)
        logger.warning(
            "%r can't be locked (%s): start one process at a time there",
            str(path),
            error.strerror,
            extra=log.ONCE,
        )
