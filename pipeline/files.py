"""Writing files so that a crash leaves the old or the new one, never half of it."""

import json
import os
from pathlib import Path
from typing import Any

import xxhash

from pipeline.cli import UserError

_CHUNK = 1 << 24  # bytes


def write_json(path: Path, content: Any) -> None:
    """Atomically: aside, flushed, renamed."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    flush(aside)
    aside.replace(path)
    flush(path.parent)


def check_can_make(folder: Path, field: str) -> None:
    """Raises UserError where ``folder``, given as ``field``, is neither a folder to write to nor can be made one."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{field} {str(folder)!r} can't be made: {str(above)!r} is no folder that you may write to")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that :func:`write_json` wrote. Raises UserError where it is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} can't be read ({error}): put back a copy of it") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} is damaged (it holds no JSON object): put back a copy of it")
    return content


def flush(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def xxh3_128(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
