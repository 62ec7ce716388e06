"""The work folder of an unfinished dataset, and its locks: one process per task, or one process for all of OUTPUT."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.locks import Lock, still_names, try_lock


@contextmanager
def alone(output: Path, task: int | None) -> Iterator[None]:
    """Lock one task of OUTPUT, or all of it (``task`` is None). Raises UserError if another process has the lock.

    Two processes at once would delete each other's unfinished files. On a file system without locks this can't be
    detected, and a warning is logged.
    """
    folder, made = work_folder(output), not output.exists()
    with contextlib.ExitStack() as held:
        lock = held.enter_context(_lock(folder / "lock", output, shared=task is not None))
        if task is not None:
            held.enter_context(_lock(folder / f"lock-{task}", output, shared=False))
        try:
            yield
        finally:
            # remove the work folder of a run that failed before it had a plan, unless other tasks are running
            if try_lock(lock, folder / "lock") is Lock.HELD:
                with contextlib.suppress(OSError):
                    if not any(path for path in folder.iterdir() if not path.name.startswith("lock")):
                        shutil.rmtree(folder)
                        if made:
                            output.rmdir()


@contextmanager
def _lock(path: Path, output: Path, *, shared: bool) -> Iterator[int]:
    while True:
        fd = _open(path)
        try:
            if try_lock(fd, path, shared=shared) is Lock.TAKEN:
                raise UserError(
                    f"OUTPUT {str(output)!r} is being written by another process: wait for it, or give another folder"
                )
            if still_names(path, fd):  # else a task that failed has removed the folder just before
                yield fd
                return
        finally:
            os.close(fd)


def _open(path: Path) -> int:
    """Open a lock's file, after making its folder; again if another process removes that folder in between."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def work_folder(output: Path) -> Path:
    return output / ".work"


def plan_path(output: Path, split: str) -> Path:
    return work_folder(output) / "plan" / f"plan-{split}.arrow"


def done_path(output: Path, split: str, shard: int) -> Path:
    return work_folder(output) / "done" / f"{split}-{shard:05d}.arrow"
