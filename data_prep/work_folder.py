"""One process at a time for one piece of work in a folder, and no other beside one that does all of it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.locks import Lock, try_lock


@contextmanager
def alone(output: Path, task: int | None) -> Iterator[None]:
    """Hold a task of OUTPUT, or all of it. Raises UserError where another process does.

    Two at once would delete each other's unfinished files. On a file system without locks nobody can tell, and a
    warning says so.
    """
    folder, made = work_folder(output), not output.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        lock = held.enter_context(_lock(folder / "lock", output, shared=task is not None))
        if task is not None:
            held.enter_context(_lock(folder / f"lock-{task}", output, shared=False))
        try:
            yield
        finally:
            # nothing is left of a run that failed before it had a plan, unless other tasks are there
            if try_lock(lock, folder / "lock") is Lock.HELD:
                with contextlib.suppress(OSError):
                    if not any(path for path in folder.iterdir() if not path.name.startswith("lock")):
                        shutil.rmtree(folder)
                        if made:
                            output.rmdir()


@contextmanager
def _lock(path: Path, output: Path, *, shared: bool) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if try_lock(fd, path, shared=shared) is Lock.TAKEN:
            raise UserError(
                f"OUTPUT {str(output)!r} is being made by another process: wait for it, or give another folder"
            )
        yield fd
    finally:
        os.close(fd)


def work_folder(output: Path) -> Path:
    return output / ".work"


def plan_path(output: Path, split: str) -> Path:
    return work_folder(output) / "plan" / f"plan-{split}.arrow"


def done_path(output: Path, split: str, shard: int) -> Path:
    return work_folder(output) / "done" / f"{split}-{shard:05d}.arrow"
