"""Shards fetched from elsewhere: a folder of a node's disk with a size limit, shared by the node's processes.

Files bear the hash of their content, appear whole (by renaming) and are deleted, least recently used first, where room
is needed. All agreement is by file locks, which end with their process:

- ``NAME.part`` is locked by the process that fetches it; one that nobody locks is left over from a crash;
- a shard is locked, shared, while a process reads from it, and is not deleted then;
- ``.room`` is locked while room is made.

A file's time of modification is that of its last use. What a process will need next it touches again and again, and
what is fetched ahead of need takes the place only of files that nobody has touched for the time of a lease.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.files import xxh3_128
from pipeline.dataset import urls
from pipeline.dataset.remote import locked
from pipeline.dataset.urls import Patience

POLL = 0.05  # seconds between looks at what another process does


@dataclass(frozen=True)
class Wanted:
    """A file elsewhere."""

    url: str
    size: int  # bytes
    xxh3_128: str  # hexadecimal; empty where nobody knows it
    version: str = ""  # the data set's digest: a file of no known hash serves no other version of it

    @property
    def name(self) -> str:
        return self.xxh3_128 or f"{xxhash.xxh3_128_hexdigest(f'{self.version} {self.url}'.encode())}-{self.size}"


@dataclass(frozen=True)
class Cache:
    folder: Path
    limit: int  # bytes of all files, those that are being fetched included
    patience: Patience = field(default_factory=Patience)
    lease: float = 15.0  # seconds
    _distrusted: set[str] = field(default_factory=set, compare=False)  # names of files whose content was looked at

    def check(self, sizes: Sequence[int]) -> None:
        """Raises UserError where the largest file doesn't fit, or the folder can't be written."""
        if max(sizes, default=0) > self.limit:
            raise UserError(
                f"data.cache_gb {self.limit / 1e9:g} has no room for a shard of {max(sizes) / 1e9:g} GB: allow more"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / ".room"):
                pass
        except OSError as error:
            raise UserError(f"data.cache {str(self.folder)!r} can't be written ({error}): name another") from error

    @contextmanager
    def open(self, wanted: Wanted) -> Iterator[int]:
        """A descriptor of the whole file, fetched where it isn't here. Hold one at a time: others may need the room.

        Raises GoneError and OSError where it can't be had.
        """
        descriptor = self._open(wanted)
        while descriptor is None:
            descriptor = self._fetch(wanted)
            if descriptor is None:  # another process is at it, or all room is in use for the moment
                time.sleep(POLL)
                descriptor = self._open(wanted)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def fetch_ahead(self, wanted: Wanted) -> bool:
        """Fetch the file unless it is here or another process does it. False where there is no room to spare."""
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
        """What was read from a file makes no sense: delete it where its hash is known and another.

        Each file is looked at once in a process.
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
        if os.fstat(descriptor).st_size != wanted.size:  # cut since: by a crash of the node, by hand
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # where it is just being deleted, the descriptor still reads it
        os.utime(descriptor)
        return descriptor

    def _fetch(self, wanted: Wanted, *, ahead: bool = False) -> int | None:
        """The fetched file, open and locked; None where another process fetches it or, unless ``ahead``, there is no
        room just now."""
        path, part = self.folder / wanted.name, self.folder / f"{wanted.name}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(descriptor) or not _is(part, descriptor):
            os.close(descriptor)
            return None
        try:
            if path.exists():  # since we looked
                raise FileExistsError
            self._make_room(wanted.size, part, descriptor, before=time.time() - self.lease if ahead else None)
            urls.download(wanted.url, descriptor, wanted.size, wanted.xxh3_128, self.patience)
            os.fsync(descriptor)  # or a crash of the node may leave a file of this name and size with other content
            part.replace(path)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException as error:
            part.unlink(missing_ok=True)
            os.close(descriptor)
            if isinstance(error, FileExistsError) or (isinstance(error, _NoRoomError) and not ahead):
                return None
            # of the disk: those of the source are in words, and what passes is for the caller to try again
            if isinstance(error, OSError) and error.errno and error.errno not in retry.TRANSIENT:
                raise UserError(
                    f"data.cache {str(self.folder)!r} can't be written ({error.strerror}): lower data.cache_gb where "
                    "its disk is full, or name another"
                ) from error
            raise
        return descriptor

    def _make_room(self, size: int, part: Path, descriptor: int, before: float | None) -> None:
        """Delete what was used longest ago (only ``before`` a time, if given) until ``size`` bytes fit, and take them
        for ``part``. Raises _NoRoomError."""
        with locked(self.folder / ".room"):
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
        """What is needed now and next, most urgent first; replaces what was asked for before."""
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
                except (OSError, UserError):  # whoever reads it will say so
                    break


class _NoRoomError(Exception):
    """All files are in use."""


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EBADF:  # NFS's word for a file that is open for reading alone
            raise
        return False
    return True


def _is(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _delete(path: Path) -> bool:
    """Unless a process reads or fetches it, or it is another user's on NFS, where nobody can tell."""
    try:
        try:
            descriptor = os.open(path, os.O_RDWR)  # NFS locks as fcntl does: no LOCK_EX for who can only read
        except PermissionError:  # another user's
            descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
