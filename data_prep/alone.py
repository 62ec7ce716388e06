"""One process at a time for one piece of work in a folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep import build
from pipeline.cli import UserError


@contextmanager
def alone(output: Path, what: str) -> Iterator[None]:
    """Hold ``what`` of OUTPUT. Raises UserError where another process does; the kernel lets go of a killed one's.

    Two at once would delete each other's unfinished files. A file system without locks is taken at its word.
    """
    folder = build.work_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"lock-{what}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"OUTPUT {str(output)!r} is being made by another process: wait for it, or give another folder"
            ) from None
        except OSError:
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # nothing is left of a run that failed before it had a plan
                folder.rmdir()
                output.rmdir()
    finally:
        os.close(fd)
