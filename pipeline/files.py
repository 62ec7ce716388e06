"""Writing files so that a crash leaves the old or the new one, never half of it."""

import json
import os
from pathlib import Path
from typing import Any

import xxhash

_CHUNK = 1 << 24  # bytes


def write_json(path: Path, content: Any) -> None:
    """Atomically: aside, flushed, renamed."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    flush(aside)
    aside.replace(path)
    flush(path.parent)


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
