"""The cache of shards behind URLs: a folder on a node's disk with a size limit, shared by the node's processes.

Files are named by the hash of their content, appear whole (by renaming), and are deleted, least recently used first,
when space is needed. Processes coordinate by file locks, which end with their process:

- ``NAME.part`` is locked by the process that fetches it; an unlocked one is left over from a crash;
- a shard is locked (shared) while a process reads from it, and is not deleted meanwhile;
- ``.room`` is locked while files are counted and space is freed, and while a file is renamed.

A file's modification time is the time of its last use. A process regularly touches the files that it will need next,
and prefetched files replace only files that nobody has touched for the duration of a lease.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.files import put_in_place, xxh3_128
from pipeline.core.locks import Lock, locked, still_names, try_lock, wait_for_lock
from pipeline.core.retry import Patience
from pipeline.dataset import urls

POLL, LONGEST_POLL = 0.05, 0.2  # seconds between checks of what another process does
DELETING = 10.0  # seconds for which a file may stay locked while another process deletes it
STALE = 600.0  # seconds without a new byte after which a .part counts as left over if the file system has no locks


@dataclass(frozen=True)
class Wanted:
    """A file behind a URL."""

    url: str
    size: int  # bytes
    xxh3_128: str  # hexadecimal; empty if unknown
    version: str = ""  # the dataset's digest: a file without a known hash is not used for another version

    @property
    def name(self) -> str:
        return self.xxh3_128 or f"{xxhash.xxh3_128_hexdigest(f'{self.version} {self.url}'.encode())}-{self.size}"


@dataclass(frozen=True)
class Cache:
    folder: Path
    limit: int  # bytes of all files, including those being fetched
    patience: Patience = field(default_factory=Patience)
    lease: float = 15.0  # seconds
    _distrusted: set[str] = field(default_factory=set, compare=False)  # names of files whose content was looked at

    def check(self, sizes: Sequence[int]) -> None:
        """Raises UserError if the largest file doesn't fit or the folder is not writable."""
        if max(sizes, default=0) > self.limit:
            raise UserError(
                f"data.cache_gb {self.limit / 1e9:g} has no room for a shard of {max(sizes) / 1e9:g} GB: raise it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._room():
                pass
        except OSError as error:
            raise UserError(
                f"data.cache {str(self.folder)!r} can't be written ({error}): give another folder"
            ) from error

    @contextmanager
    def open(self, wanted: Wanted) -> Iterator[int]:
        """A descriptor of the whole file, which is fetched if needed. Hold one at a time: others may need the space.

        Raises GoneError and OSError if it can't be fetched, UserError if there was no space for ``patience.seconds``.
        """
        descriptor = self._open(wanted)
        for_another = retry.Backoff(POLL, LONGEST_POLL)
        for_room = retry.Backoff(POLL, LONGEST_POLL, self.patience.seconds)
        while descriptor is None:
            try:
                descriptor = self._fetch(wanted)
                if descriptor is None:  # another process is at it, whose own patience ends
                    for_another.wait()
            except _NoRoomError:  # all files are being read for the moment
                if not for_room.wait():
                    raise UserError(
                        f"data.cache {str(self.folder)!r} has no room: its files are being read or belong to another "
                        "user: raise data.cache_gb, or give another folder"
                    ) from None
            descriptor = self._open(wanted) if descriptor is None else descriptor
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def fetch_ahead(self, wanted: Wanted) -> bool:
        """Fetch the file unless it is cached or another process fetches it. False if there is no space to spare."""
        try:
            os.utime(self.folder / wanted.name)
        except FileNotFoundError:
            try:
                descriptor = self._fetch(wanted, ahead=True)
            except _NoRoomError:
                return False
            if descriptor is not None:
                os.close(descriptor)
        return True

    def distrust(self, wanted: Wanted) -> None:
        """Called when a file's content can't be decoded: delete the file if it does not match its hash.

        Each process checks each file once.
        """
        if not wanted.xxh3_128 or wanted.name in self._distrusted:
            return
        self._distrusted.add(wanted.name)
        path = self.folder / wanted.name
        with self.open(wanted):
            if xxh3_128(path) != wanted.xxh3_128:
                path.unlink(missing_ok=True)

    def _open(self, wanted: Wanted) -> int | None:
        path = self.folder / wanted.name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != wanted.size:  # truncated since, by a crash of the node or by hand
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        _share(descriptor, path)
        os.utime(descriptor)
        return descriptor

    def _fetch(self, wanted: Wanted, *, ahead: bool = False) -> int | None:
        """The fetched file, open and locked; None if another process fetches it. Raises _NoRoomError."""
        path, part = self.folder / wanted.name, self.folder / f"{wanted.name}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        if try_lock(descriptor, part) is Lock.TAKEN or not still_names(part, descriptor):
            os.close(descriptor)
            return None
        try:
            if path.exists():  # it has appeared in the meantime
                raise FileExistsError
            self._make_room(wanted.size, part, descriptor, before=time.time() - self.lease if ahead else None)
            urls.download(wanted.url, descriptor, wanted.size, wanted.xxh3_128, self.patience)
            os.fsync(descriptor)  # or a crash of the node may leave a file of this name and size with other content
            with self._room():  # or who counts the files might meet this one under neither name
                put_in_place(part, path)
            _share(descriptor, path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            os.close(descriptor)
            if isinstance(error, FileExistsError | FileNotFoundError):  # without locks another may have renamed it
                return None
            # of the disk: those of the source are in words, and what passes is for the caller to try again
            if isinstance(error, OSError) and error.errno and error.errno not in retry.TRANSIENT:
                raise UserError(
                    f"data.cache {str(self.folder)!r} can't be written ({error.strerror}): lower data.cache_gb if its "
                    "disk is full, or give another folder"
                ) from error
            raise
        return descriptor

    def _room(self) -> AbstractContextManager[Lock]:
        return locked(self.folder / ".room")

    def _make_room(self, size: int, part: Path, descriptor: int, before: float | None) -> None:
        """Delete the least recently used files (only those last used ``before`` a time, if given) until ``size`` bytes
        fit, and reserve them for ``part``. Raises _NoRoomError."""
        with self._room():
            files = []
            for path in self.folder.iterdir():
                if path == part or path.name.startswith("."):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    left_over = path.suffix == ".part"  # if nobody locks it
                    files.append((0.0 if left_over else found.st_mtime, found.st_size, path))
            total = sum(used for _, used, _ in files) + size
            for last_use, used, path in sorted(files):
                if total > self.limit and (before is None or last_use < before) and _delete(path):
                    total -= used
            if total > self.limit:
                raise _NoRoomError
            os.ftruncate(descriptor, size)


class Prefetcher:
    """A thread that fetches the shards that will be needed next, as long as there is room."""

    def __init__(self, cache: Cache):
        self._cache = cache
        self._wanted: list[Wanted] = []
        self._news = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="shards-ahead").start()

    def want(self, wanted: list[Wanted]) -> None:
        """Set what is needed now and next, most urgent first; replaces the previous list."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._news.set()

    def _run(self) -> None:
        while True:
            self._news.wait(self._cache.lease / 3)
            self._news.clear()
            wanted = self._wanted
            for item in wanted:
                if self._wanted is not wanted:
                    break
                try:
                    if not self._cache.fetch_ahead(item):
                        break
                except (OSError, UserError):  # the process that reads the file will report it
                    break


class _NoRoomError(Exception):
    """All files are in use."""


def _share(descriptor: int, path: Path) -> None:
    """Keep others from deleting the file. If it is just being deleted, the descriptor still reads it."""
    with contextlib.suppress(UserError):
        wait_for_lock(descriptor, path, shared=True, seconds=DELETING)


def _delete(path: Path) -> bool:
    """Delete a file unless a process reads or fetches it, or may be doing so; whether the file is gone.

    Without locks a file that is being read is deleted too: its descriptor still reads it, or it is fetched again.
    """
    try:
        try:
            descriptor, own = os.open(path, os.O_RDWR), True
        except PermissionError:  # another user's file; on NFS a read-only descriptor can't be locked exclusively
            descriptor, own = os.open(path, os.O_RDONLY), False
    except FileNotFoundError:
        return True
    try:
        lock = try_lock(descriptor, path)
        fetching = path.suffix == ".part" and time.time() - os.fstat(descriptor).st_mtime < STALE
        if lock is Lock.TAKEN or (lock is Lock.UNAVAILABLE and (fetching or not own)):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
