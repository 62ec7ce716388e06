"""Entries of folders and the files below them, sorted by name, read again after transient errors."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.sources import names
from pipeline.core import retry
from pipeline.core.errors import UserError


def subfolders(folder: str | Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones and those of file managers. Raises OSError."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not names.is_system(entry.name) and entry.is_dir())


def class_folders(folder: str | Path) -> list[str]:
    """Names of the class folders in a folder, sorted, without hidden ones and those of file managers."""
    found = [
        entry for entry in entries_of(folder) if not names.is_system(entry.name) and entry_is(entry, os.DirEntry.is_dir)
    ]
    for entry in found:
        if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
            raise UserError(f"{entry.path!r} is a link to a folder that contains it, not to a class folder: remove it")
    return sorted(entry.name for entry in found)


def size_of(entry: "os.DirEntry[str]") -> int:
    return retry.steadily(lambda: entry.stat(follow_symlinks=False), entry.path).st_size


def entry_is(entry: "os.DirEntry[str]", kind: Callable[["os.DirEntry[str]"], bool]) -> bool:
    try:
        return retry.steadily(lambda: kind(entry), entry.path)
    except OSError:  # a link to itself
        return False


def entries_of(folder: str | Path) -> list["os.DirEntry[str]"]:
    def read() -> list["os.DirEntry[str]"]:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    return retry.steadily(read, folder)


def files_below(folder: str) -> Iterator["os.DirEntry[str]"]:
    """All files below a folder, in the order of names; nothing from an unreadable folder of a file manager."""
    try:
        entries = entries_of(folder)
    except PermissionError:
        if not names.is_system(Path(folder).name):
            raise
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(entry.path)
        else:
            yield entry
