"""How fast the Hub is asked: retries, a bound on downloads per node, and pauses that all its processes respect.

The Hub counts requests in windows of five minutes, and refuses those above the limit with 429 and the seconds until the
window ends (Retry-After or RateLimit; https://huggingface.co/docs/hub/rate-limits). A refused process writes the end of
the pause to a file on the node, and every process waits for it, plus a random time, so that the ranks of all nodes
don't return at the same moment.
"""

import logging
import os
import random
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pipeline.core.errors import UserError
from pipeline.core.locks import Lock, try_lock
from pipeline.core.retry import Backoff, Patience

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
QUESTION = Patience(seconds=60.0)  # for one that the Hub answers without a large file
BUSY = (408, 425, 429)  # HTTP statuses below 500 that a retry may change
DOWNLOADS = 8  # at a time per node
LONGEST_WAIT = 60.0  # seconds for one of them: a bound, not a gate (a forked process may hold a lock indefinitely)
LONGEST_PAUSE = 600.0  # seconds: two of the Hub's windows
REFUSALS = 12  # in a row, each with a time to wait, until we give up: an hour of the Hub's windows
LOGGED = 5.0  # seconds: a longer pause is logged
_RESET = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")  # RateLimit: "resolvers";r=0;t=55


class GaveUpError(OSError):
    """The patience ran out; ``error`` is that of the last attempt."""

    def __init__(self, message: str, error: Exception):
        super().__init__(message)
        self.error = error


class Pace:
    """The retries of one question or file."""

    def __init__(self, url: str, patience: Patience):
        self._url, self._patience = url, patience
        self._backoff = Backoff(patience.pause, patience.longest_pause, patience.seconds)
        self._refusals = 0

    def wait_for_turn(self) -> None:
        """Sleep until the pause of this node has ended."""
        with suppress(OSError):
            left = (_node_folder() / "pause").stat().st_mtime - time.time()
            if left > 0:
                time.sleep(min(left, LONGEST_PAUSE) + random.uniform(0, left / 2))

    def progress(self) -> None:
        self._refusals = 0
        self._backoff.reset()

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt. Raises GaveUpError when the patience runs out."""
        if isinstance(error, UserError):
            raise error
        response = getattr(error, "response", None)
        seconds = None if response is None else pause_of(response.headers)
        if seconds is not None and self._refusals < REFUSALS:
            self._refusals += 1
            self._backoff.reset()
            if seconds >= LOGGED:
                logger.info("%s: the server asks us to wait %.0f s (too many requests)", self._url, seconds)
            pause(seconds)
        elif not self._backoff.wait():
            said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise GaveUpError(f"{self._url}: gave up after {self._patience.seconds:.0f} s: {said}", error) from error


def ask(question: Callable[[], Item], url: str, patience: Patience, final: Callable[[Exception], bool]) -> Item:
    """What ``question`` returns; it is repeated after an error unless the error is ``final``, which is raised.

    ``url`` names what is asked about in messages. Raises GaveUpError when the patience runs out.
    """
    pace = Pace(url, patience)
    while True:
        pace.wait_for_turn()
        try:
            return question()
        except Exception as error:  # of httpx, of huggingface_hub, and of what lies below them
            if final(error):
                raise
            pace.failed(error)


def is_busy(status: int) -> bool:
    """Whether an HTTP status is an error that a retry may change."""
    return status >= 500 or status in BUSY


def is_refusal(error: Exception) -> bool:
    """Whether an error of the Hub is one that a retry won't change."""
    response = getattr(error, "response", None)
    status = 0 if response is None else response.status_code
    return type(error).__name__ == "OfflineModeIsEnabled" or (status >= 400 and not is_busy(status))


def pause_of(headers: Mapping[str, str]) -> float | None:
    """The seconds for which an answer asks us to wait; None if it doesn't."""
    after = headers.get("Retry-After", "").strip()
    if after.isdecimal():
        return float(after)
    found = _RESET.search(headers.get("RateLimit", ""))
    return float(found[1]) if found else None


def pause(seconds: float) -> None:
    """Make all processes of this user on this node wait."""
    try:
        path, now = _node_folder() / "pause", time.time()
        # not touch, after which an earlier pause would seem to be over until the next line but one
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        until = min(max(path.stat().st_mtime, now + seconds), now + LONGEST_PAUSE)
        os.utime(path, (until, until))
    except OSError:
        time.sleep(min(seconds, LONGEST_PAUSE))


@contextmanager
def download_turn() -> Iterator[None]:
    """One of the DOWNLOADS that may run at the same time on this node."""
    descriptor = _take_turn()
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take_turn() -> int | None:
    backoff = Backoff(0.05, 0.5, LONGEST_WAIT)
    while True:
        for number in random.sample(range(DOWNLOADS), DOWNLOADS):
            try:
                path = _node_folder() / f"download-{number}"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError:
                return None
            if try_lock(descriptor, path) is not Lock.TAKEN:
                return descriptor
            os.close(descriptor)
        if not backoff.wait():
            return None


def _node_folder() -> Path:
    """A folder of this user on this node. Raises OSError if it is another user's."""
    folder = Path(tempfile.gettempdir()) / f"vit-hub-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(str(folder))
    return folder
