"""The raw forms: what they hold, found without reading any image.

A source is cut into parts (a class each, as a rule) that are scanned independently, each giving rows of the catalogue
and rejects. Nothing is unpacked.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow as pa

from data_prep.plan import CATALOGUE
from data_prep.tarscan import BLOCK, DamagedTarError, Member, looks_like_tar, scan
from pipeline.cli import UserError
from pipeline.shards import REJECTS_SCHEMA

Form = Literal["tar-of-tars", "folder"]
ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"})


@dataclass(frozen=True)
class Part:
    """A piece of a source that one process scans: one class's tar inside ``path``, or one class's folder."""

    form: Form
    path: Path
    wnid: str
    start: int = 0  # bytes in path, for tars
    end: int = 0


@dataclass
class Found:
    """Rows of the catalogue and of the rejects, gathered while scanning."""

    images: list[tuple[str, str, bytes, int, int]] = field(default_factory=list)
    rejects: list[tuple[str, str, int, str, str]] = field(default_factory=list)

    def image(self, wnid: str, name: str, file: bytes, offset: int, size: int) -> None:
        self.images.append((wnid, name, file, offset, size))

    def reject(self, source: str, wnid: str, size: int, reason: str, detail: str) -> None:
        self.rejects.append((printable(source), wnid, size, reason, detail))

    def tables(self) -> tuple[pa.Table, pa.Table]:
        return rows_table(self.images, CATALOGUE), rows_table(self.rejects, REJECTS_SCHEMA)


def rows_table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)], schema=schema)


def printable(text: str) -> str:
    """``text`` with bytes that aren't UTF-8 written %XX, so that it can be stored and shown anywhere."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in text)
    return text


def detect(path: Path) -> Form:
    """The form of what lies at ``path``. Raises UserError where there is nothing, or nothing we know."""
    if path.is_dir():
        return "folder"
    if not path.exists():
        raise UserError(f"INPUT {str(path)!r} does not exist: give the release's tar, or a folder of class folders")
    with path.open("rb") as file:
        start = file.read(BLOCK)
    if not start:
        raise UserError(f"INPUT {str(path)!r} is empty (0 bytes): download it again")
    if looks_like_tar(start):
        return "tar-of-tars"
    raise UserError(f"INPUT {str(path)!r} is no tar and no folder (it starts with {start[:8].hex(' ')})")


def parts(form: Form, path: Path) -> list[Part]:
    """The parts of a source, in the order they lie there."""
    return _tar_parts(path) if form == "tar-of-tars" else _folder_parts(path)


def scan_part(part: Part) -> tuple[pa.Table, pa.Table]:
    """CATALOGUE and REJECTS_SCHEMA rows of one part."""
    found = Found()
    if part.form == "folder":
        _scan_folder(part, found)
    else:
        _scan_tar(part, found)
    return found.tables()


def _tar_parts(path: Path) -> list[Part]:
    found = []
    for member in tar_members(path, 0, None):
        name = PurePosixPath(member.name)
        if member.kind == "file" and name.suffix == ".tar" and not name.name.startswith("."):
            found.append(Part("tar-of-tars", path, printable(name.stem), member.offset, member.offset + member.size))
    if not found:
        raise UserError(f"INPUT {str(path)!r} holds no <wnid>.tar members: it is an empty tar, or no ImageNet release")
    return found


def tar_members(path: Path, start: int, end: int | None) -> Iterator[Member]:
    """The members of a tar, or of the tar in bytes ``start`` to ``end`` of it. UserError where it is damaged."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        yield from scan(lambda offset, count: os.pread(fd, count, offset), start, size if end is None else end)
    except DamagedTarError as error:
        raise UserError(f"INPUT {str(path)!r} is damaged, {error}: download it again and check its md5") from None
    finally:
        os.close(fd)


def _scan_tar(part: Part, found: Found) -> None:
    file = os.fsencode(part.path)
    for member in tar_members(part.path, part.start, part.end):
        take_member(member, part.wnid, file, f"{part.wnid}.tar/{member.name}", found)


def take_member(member: Member, wnid: str, file: bytes, source: str, found: Found) -> None:
    """Put a tar member where it belongs: an image of ``wnid``, a reject, or nothing at all."""
    path = PurePosixPath(printable(member.name))
    if member.kind == "directory" or path.name.startswith("."):
        return
    if member.kind != "file":
        found.reject(source, wnid, member.size, "not_a_file", f"the tar member is a {member.kind}")
    elif path.is_absolute() or ".." in path.parts:
        found.reject(source, wnid, member.size, "unsafe_path", "the tar member's path leaves its folder")
    elif path.suffix.lower() not in ENDINGS:
        found.reject(source, wnid, member.size, "other_file", f"ending {path.suffix!r} is no image's")
    else:
        inside = path.parts[1:] if path.parts[0] == wnid and len(path.parts) > 1 else path.parts
        found.image(wnid, "/".join(inside), file, member.offset, member.size)


def _folder_parts(path: Path) -> list[Part]:
    folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"INPUT {str(path)!r} has no class folders: images must lie in INPUT/<class>/<image>")
    return [Part("folder", path / name, printable(name)) for name in folders]


def _scan_folder(part: Part, found: Found) -> None:
    for entry in _walk(part.path):
        inside = os.path.relpath(entry.path, part.path)
        source = f"{part.wnid}/{inside}"
        if not entry.is_file():
            found.reject(source, part.wnid, 0, "not_a_file", "neither a file nor a link to one")
            continue
        size = entry.stat().st_size
        if os.path.splitext(entry.name)[1].lower() not in ENDINGS:  # noqa: PTH122 a Path a file is slow
            found.reject(source, part.wnid, size, "other_file", "the ending is no image's")
        else:
            found.image(part.wnid, printable(inside), os.fsencode(entry.path), 0, size)


def _walk(folder: Path | str) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            else:
                yield entry
