"""One shard: a plain WebDataset tar, written atomically and byte-for-byte reproducibly."""

import os
import tarfile
from pathlib import Path
from types import TracebackType

import xxhash

from data_prep.sources.tar_headers import BLOCK, ZERO_BLOCK
from pipeline.core.files import put_in_place, temporary, write_all

try:
    from data_prep import _sample
except ImportError:
    _sample = None  # type: ignore[assignment]

RECORD = 20 * BLOCK  # tars are padded to a record, as tar and tarfile do
_FLUSH = 1 << 20  # bytes gathered before a write: still in the CPU cache
_BEGIN = 32 << 20  # bytes after which the kernel is asked to start writing to disk


def header(name: str, size: int) -> bytes:
    """The tar header(s) of a file: mode 0644, owner and time 0. USTAR, with a PAX header if the name needs one."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def around(key: str, size: int, label: int) -> tuple[bytes, bytes]:
    """The bytes before and after the ``size`` bytes of ``<key>.jpg``: its header; padding and ``<key>.cls``."""
    plain = _sample.tar_headers(key, size, label) if _sample else None
    if plain:
        return plain
    text = b"%d" % label
    after = b"".join((bytes(-size % BLOCK), header(f"{key}.cls", len(text)), text, bytes(-len(text) % BLOCK)))
    return header(f"{key}.jpg", size), after


class ShardWriter:
    """Write ``<key>.jpg`` and ``<key>.cls`` members to ``path``, which appears only when it is completely on disk.

    Use as a context manager; an exception leaves nothing behind. After the block, ``bytes`` is the tar's size and
    ``xxh3_128`` the hash of all its bytes in hexadecimal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.xxh3_128 = ""
        self._temporary = temporary(path)
        self._hash = xxhash.xxh3_128()
        self._parts: list[bytes] = []
        self._gathered = 0
        self._begun = 0

    def __enter__(self) -> "ShardWriter":
        self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        return self

    def add(self, key: str, jpeg: bytes, label: int) -> int:
        """Append one sample; the offset of the JPEG's first byte in the tar."""
        before, after = around(key, len(jpeg), label)
        offset = self.bytes + len(before)
        self._append(before, jpeg, after)
        return offset

    def _append(self, *parts: bytes) -> None:
        length = 0
        for part in parts:
            self._hash.update(part)
            length += len(part)
        self._parts += parts
        self._gathered += length
        self.bytes += length
        if self._gathered >= _FLUSH or len(self._parts) >= 1000:  # writev takes at most IOV_MAX = 1024 parts
            self._flush()

    def _flush(self) -> None:
        parts = self._parts
        written = os.writev(self._fd, parts) if parts else 0
        if written < self._gathered:  # interrupted by a signal, or more than the kernel accepts at once
            write_all(self._fd, memoryview(b"".join(parts))[written:])
        self._parts, self._gathered = [], 0
        if self.bytes - self._begun >= _BEGIN:
            # On Linux this starts the write-back of dirty pages and returns, so that the final fsync has little to do.
            # Pages on disk by then leave the page cache, which the source's images need more.
            os.posix_fadvise(self._fd, self._begun, self.bytes - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self.bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                end = 2 * len(ZERO_BLOCK)
                self._append(bytes(end + -(self.bytes + end) % RECORD))
                self._flush()
                os.fsync(self._fd)
        except BaseException:
            kind = BaseException
            raise
        finally:
            os.close(self._fd)
            if kind is not None:
                self._temporary.unlink(missing_ok=True)
        if kind is None:
            self.xxh3_128 = self._hash.hexdigest()
            put_in_place(self._temporary, self.path)
