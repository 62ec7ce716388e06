"""Writing files so that a crash leaves the old or the new file, never a partial one."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from pipeline.core import retry
from pipeline.core.errors import UserError

_CHUNK = 1 << 20  # bytes: fits into the CPU cache while it is hashed


def write_json(path: Path, content: Any) -> None:
    """Write an object as JSON, atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, atomically."""
    with appearing(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on exit flush it to disk and rename it to ``path``. On errors, remove it.

    For writers that outlive a block, use :func:`temporary` and :func:`put_in_place`.
    """
    aside = temporary(path)
    try:
        with naming(path):
            yield aside
            flush(aside)
            put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """A temporary name in the folder of ``path`` that no other process uses, on this host or another."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def put_in_place(aside: Path, path: Path) -> None:
    """Rename a file, link or folder to ``path``, replacing an existing file or link.

    The parent folder is flushed too, so that the name survives a power failure.
    """
    aside.replace(path)
    flush(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to file-system errors: the system names it when opening fails, but not when writing fails.

    safetensors' errors from the operating system become OSErrors.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def readable_as_folder(path: Path) -> None:
    """Give ``path`` its folder's read permissions: safetensors and tempfile make files that only the owner can read."""
    with suppress(OSError):  # some network file systems have no permissions
        path.chmod(0o600 | (path.parent.stat().st_mode & 0o044))


def is_remote(location: str) -> bool:
    """Whether a data location is ``pipe:COMMAND`` or a URL, not a path."""
    return location.startswith("pipe:") or "://" in location


def check_local(path: Path, field: str) -> None:
    """Raise UserError if ``path``, given as ``field``, is a URL, which would be read as a folder named "s3:"."""
    text = str(path)
    if re.match(r"pipe:|[a-z][a-z0-9+.-]*:/", text):
        url = text if text.startswith("pipe:") else text.replace(":/", "://", 1)
        raise UserError(
            f"{field} {url!r} is not a path: it must be on this machine or a shared disk; copy remote files with "
            "a tool such as 'aws s3 sync'"
        )


def check_can_make(folder: Path, field: str) -> None:
    """Raise UserError if ``folder``, given as ``field``, is not a writable folder and can't be created."""
    check_local(folder, field)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{field} {str(folder)!r} can't be created: {str(above)!r} is not a writable folder")


def read_json(path: Path, remedy: str = "put back a copy of it") -> dict[str, Any]:
    """The object in a JSON file, retried after transient disk errors (:func:`pipeline.core.retry.steadily`).

    Raises UserError with the file and ``remedy`` if it can't be read or is damaged.
    """
    content = _read_json(path, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} is damaged (it is not a JSON object): {remedy}")
    return content


def read_json_list(path: Path, remedy: str = "put back a copy of it") -> list[Any]:
    """Like :func:`read_json`, for a file that contains a list."""
    content = _read_json(path, remedy)
    if not isinstance(content, list):
        raise UserError(f"{str(path)!r} is damaged (it is not a JSON list): {remedy}")
    return content


def _read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(retry.steadily(path.read_bytes, path))  # UTF-8
    except OSError as error:
        raise UserError(f"{str(path)!r} can't be read ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): {remedy}") from error


def flush(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def xxh3_128(path: Path) -> str:
    """Hash of a file's content, hexadecimal."""
    digest = xxhash.xxh3_128()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def hashed(path: Path, algorithm: str = "sha256") -> str:
    """hashlib's digest of a file's content, hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    descriptor, at = retry.open_file(path), 0
    try:
        while chunk := retry.pread(descriptor, _CHUNK, at, path):
            yield chunk
            at += len(chunk)
    finally:
        os.close(descriptor)


def write_all(fd: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def fresh(folder: Path) -> Path:
    """Make ``path`` an empty folder, removing what a killed run left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
