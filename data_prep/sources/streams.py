"""Sequential sources: gzip files, pipes and downloads. Read once, front to back, in bounded memory."""

import contextlib
import os
import signal
import stat
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.files import is_remote
from pipeline.dataset import hub_dataset
from pipeline.dataset.hub_reader import HubFile

CHUNK = 1 << 20  # bytes read at a time
PATIENCE = 600.0  # seconds without a byte before we give up on a server that has answered
PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a request is repeated; doubles each time
STALL = 30.0  # seconds without a byte after which a request has failed
REFUSED = (401, 403, 404, 410)  # HTTP statuses that a retry doesn't change
BUSY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that a retry may change


class Stream:
    """Positioned reads from a sequential source: each must start at or after the end of the previous one."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._start = 0  # position of the chunk's first byte
        self.ended = False

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer only at the end."""
        if offset < self._start:
            raise RuntimeError(f"a stream can't be read backwards, from {self._start} to {offset}")
        found: list[bytes] = []
        while size:
            at = offset - self._start
            piece = self._chunk[at : at + size]
            if piece:
                found.append(piece)
                offset += len(piece)
                size -= len(piece)
                continue
            self._start += len(self._chunk)
            self._chunk = next(self._chunks, b"")
            if not self._chunk:
                self.ended = True
                break
        return found[0] if len(found) == 1 else b"".join(found)

    def skip(self) -> None:
        """Discard the current chunk and read the next one."""
        self._start += len(self._chunk)
        self._chunk = next(self._chunks, b"")
        self.ended = not self._chunk


def open_stream(location: str, on_bytes: Callable[[int], None] = lambda _: None) -> Stream:
    """Open a local file, ``pipe:COMMAND``, or a URL (hf://, or what fsspec knows: s3://, https://); gzip is unpacked.

    ``on_bytes`` is called with the number of bytes read, before unpacking. Errors of the source raise UserError.
    """
    return Stream(_unpacked(_counted(_raw(location), on_bytes), location))


def _counted(chunks: Iterator[bytes], on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    for chunk in chunks:
        on_bytes(len(chunk))
        yield chunk


def _raw(location: str) -> Iterator[bytes]:
    if location.startswith("pipe:"):
        yield from _from_command(location.removeprefix("pipe:"))
    elif hub_dataset.is_hub(location):
        yield from _from_hub(location)
    elif "://" in location:
        yield from _from_url(location)
    else:
        yield from _from_file(location)


def _from_file(path: str) -> Iterator[bytes]:
    descriptor, at = retry.open_file(path), 0
    try:
        while chunk := _read_on(descriptor, at, path):
            at += len(chunk)
            yield chunk
    finally:
        os.close(descriptor)


def _read_on(descriptor: int, at: int, path: str) -> bytes:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return retry.pread(descriptor, CHUNK, at, path)
    return os.read(descriptor, CHUNK)  # a FIFO doesn't support positioned reads


def _from_command(command: str) -> Iterator[bytes]:
    with subprocess.Popen(
        command, shell=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read(CHUNK):
                yield chunk
        except BaseException:  # on any error, also stop the command and everything it started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        raise UserError(f"INPUT's command {command!r} failed with exit code {process.returncode}")


def _from_hub(url: str) -> Iterator[bytes]:
    try:
        yield from HubFile(url, retry.Patience(PATIENCE, PAUSE, LONGEST_PAUSE, STALL)).all(hub_dataset.size_of(url))
    except OSError as error:
        raise UserError(
            f"INPUT {url!r} can't be read ({error}): check the network, then run the same command"
        ) from None


def _from_url(url: str) -> Iterator[bytes]:
    """Read a URL. A request that fails after the server has answered resumes where it broke off, with growing pauses.

    Servers that don't support ranges, or don't state the file's size, send it from the beginning: the bytes that were
    already read are skipped, and must be the same.
    """
    at, size, blocks = 0, None, 8 << 20
    backoff, came = retry.Backoff(PAUSE, LONGEST_PAUSE, PATIENCE), xxhash.xxh3_128()
    while True:
        try:
            from fsspec.core import url_to_fs  # imported on demand: an optional dependency

            system, path = url_to_fs(url, **_settings(url))
            with system.open(path, "rb", block_size=blocks) as file:
                if size and file.size and size != file.size:  # some servers don't state the size
                    raise UserError(f"INPUT {url!r} had {size} bytes and has {file.size}: it changed while it was read")
                size = size or file.size
                if blocks and file.size is not None:
                    file.seek(at)
                elif at:
                    _skip(file, at, came.digest(), url, backoff)
                while chunk := file.read(CHUNK):
                    backoff.reset()
                    came.update(chunk)
                    at += len(chunk)
                    yield chunk
            if size and at < size:
                raise OSError(f"it ended after {at} of {size} bytes")
            return
        except ImportError as error:
            raise UserError(
                f"INPUT {url!r} needs the remote extra ({error}): pip install 'vit-pipeline[remote]'"
            ) from None
        except UserError:
            raise
        except Exception as error:  # fsspec passes on aiohttp's and botocore's own exceptions
            cause = _cause(error)
            if blocks and "support range requests" in str(cause):  # a server without range requests
                blocks = 0
                continue
            status = getattr(cause, "status", 0)
            lasting = status in REFUSED or isinstance(error, PermissionError) or (not at and status not in BUSY)
            if lasting or not backoff.wait():
                what = f"{type(cause).__name__} {cause}".strip()
                raise UserError(f"INPUT {url!r} can't be read ({what}): check address, keys and network") from None


def _skip(file: Any, size: int, digest: bytes, url: str, backoff: retry.Backoff) -> None:
    """Read the bytes before the break again. Raises UserError if they have changed."""
    again = xxhash.xxh3_128()
    while size and (chunk := file.read(min(size, CHUNK))):
        backoff.reset()
        again.update(chunk)
        size -= len(chunk)
    if size or again.digest() != digest:
        raise UserError(f"INPUT {url!r} changed while it was read: give a source that doesn't change, then run again")


def _settings(url: str) -> dict[str, Any]:
    """Options for http: no limit on the total time, which aiohttp sets by default; proxies from the environment."""
    if not url.startswith("http"):
        return {}
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
    return {"client_kwargs": {"timeout": limits, "trust_env": True}}


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain: fsspec reports every failure of a server as "file not found"."""
    while error.__cause__:
        error = error.__cause__
    return error


def _unpacked(chunks: Iterator[bytes], location: str) -> Iterator[bytes]:
    """The same bytes, unpacked if they are gzip (any number of members, RFC 1952)."""
    first = next(chunks, b"")
    if first[:2] != b"\x1f\x8b":
        if first:
            yield first
        yield from chunks
        return
    unpacker = zlib.decompressobj(wbits=31)
    waiting = first
    try:
        while waiting:
            if plain := unpacker.decompress(waiting, 4 * CHUNK):
                yield plain
            waiting = unpacker.unconsumed_tail or unpacker.unused_data
            if unpacker.eof:
                waiting = (waiting or next(chunks, b"")).lstrip(b"\0")  # padding after the last member
                unpacker = zlib.decompressobj(wbits=31) if waiting else unpacker
            elif not waiting:
                waiting = next(chunks, b"")
    except zlib.error as error:
        raise UserError(f"INPUT {location!r} is damaged gzip ({error}): download it again") from None
    if not unpacker.eof:
        raise UserError(f"INPUT {location!r} is cut short inside its gzip data: download it again")


def is_seekable(location: str) -> bool:
    """Whether positioned reads work: a local regular file that isn't gzip."""
    if is_remote(location) or not Path(location).is_file():
        return False
    fd = retry.open_file(location)
    try:
        return retry.pread(fd, 2, 0, location) != b"\x1f\x8b"
    finally:
        os.close(fd)
