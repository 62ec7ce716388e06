"""Locks on files (flock) between processes. A lock ends with its process, however it ends.

Nothing here waits without an end, and nothing waits for a lock that nobody holds: on a file system without locks (some
NFS, FUSE and cluster mounts) the caller continues without one, and a warning says so once.
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

WAIT = 3600.0  # seconds that a process waits for another one: the holder may be downloading an index of gigabytes
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds between two tries
SAID_AFTER = 10.0  # seconds of waiting, after which a message names the lock

logger = logging.getLogger(__name__)
_warned: set[int] = set()  # file systems (st_dev) of which a message said that they have no locks


class Lock(enum.Enum):
    """The answer to a request for a lock."""

    HELD = "held"
    TAKEN = "taken"  # another process holds it
    UNAVAILABLE = "unavailable"  # the file system has no locks, or none for this descriptor


def try_lock(descriptor: int, path: Path, *, shared: bool = False) -> Lock:
    """Ask for the lock of the open file ``path`` without waiting. A lock that is held already is converted.

    NFS answers EBADF when an exclusive lock is asked for a descriptor that is open for reading alone (flock(2)), and
    file systems without locks ENOLCK, ENOSYS, EOPNOTSUPP or EINVAL: all of them are UNAVAILABLE.
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
    """Ask until no other process holds it: HELD or UNAVAILABLE. Raises UserError after ``seconds``."""
    backoff, said = Backoff(FIRST_PAUSE, LONGEST_PAUSE, seconds), Backoff(0, 0, SAID_AFTER)
    waiting = False
    while (lock := try_lock(descriptor, path, shared=shared)) is Lock.TAKEN:
        if not waiting and said.next() is None:
            logger.info("waiting for another process, which holds %r", str(path))
            waiting = True
        if not backoff.wait():
            raise UserError(
                f"{str(path)!r} has been locked by another process for {seconds:g} s: end that process, then run again"
            )
    return lock


@contextmanager
def locked(path: Path, *, seconds: float = WAIT) -> Iterator[Lock]:
    """Hold the lock of the file ``path``, which is made if need be; HELD or UNAVAILABLE.

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
