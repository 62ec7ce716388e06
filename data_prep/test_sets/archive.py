"""The files in a download (folder, tar, gzipped tar or zip), and the location of their bytes."""

import gzip
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.sources.names import is_system_path
from data_prep.sources.tar_headers import DamagedTarError, scan
from pipeline.core.errors import UserError
from pipeline.core.files import appearing

LOCAL_HEADER = struct.Struct("<4s22xHH")  # zip's APPNOTE, 4.3.7: signature ... lengths of name and extra field
STORED, DEFLATED = 0, 8  # APPNOTE, 4.4.5
ENCRYPTED = 0x1  # bit 0 of the general purpose flags, APPNOTE, 4.4.4


class Entry(NamedTuple):
    """A file in a download."""

    name: str  # inside the download, "/" between parts
    file: Path  # contains the bytes
    offset: int
    size: int  # bytes in ``file``
    deflated: bool = False  # the bytes are a raw deflate stream

    def read(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        return zlib.decompress(data, -zlib.MAX_WBITS) if self.deflated else data


def entries(path: Path, cache: Path) -> Iterator[Entry]:
    """Every file of a download in order, except hidden ones and those of file managers. Raises UserError.

    A gzipped tar can only be read from its start, so it is expanded once into the folder ``cache``.
    """
    if path.is_dir():
        found = _in_folder(path)
    elif path.suffix == ".zip":
        found = _in_zip(path)
    else:
        found = _in_tar(expanded(path, cache) if path.suffix in (".gz", ".tgz") else path, path)
    return (entry for entry in found if not is_system_path(entry.name))


def _in_folder(folder: Path) -> Iterator[Entry]:
    for at, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            file = Path(at, name)
            yield Entry(file.relative_to(folder).as_posix(), file, 0, file.stat().st_size)


def _in_tar(tar: Path, named: Path) -> Iterator[Entry]:
    with tar.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, offset)

        try:
            for member in scan(read, 0, None, file.fileno(), whole=True):
                if member.kind == "file":
                    yield Entry(member.name.removeprefix("./"), tar, member.offset, member.size)
        except DamagedTarError as error:
            raise UserError(f"{str(named)!r} can't be read as a tar ({error}): download it again") from None


def _in_zip(path: Path) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if member.flag_bits & ENCRYPTED:
                    raise UserError(f"{str(path)!r} has a password: unpack it, and keep the folder beside it")
                if member.compress_type not in (STORED, DEFLATED):
                    raise UserError(f"{str(path)!r} is compressed by method {member.compress_type}: unpack it")
                file.seek(member.header_offset)
                signature, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                if signature != b"PK\x03\x04":
                    raise zipfile.BadZipFile(f"no file header at byte {member.header_offset}")
                start = member.header_offset + LOCAL_HEADER.size + name + extra
                yield Entry(member.filename, path, start, member.compress_size, member.compress_type == DEFLATED)
    except (zipfile.BadZipFile, struct.error) as error:
        raise UserError(f"{str(path)!r} can't be read as a zip ({error}): download it again") from None


def expanded(path: Path, cache: Path) -> Path:
    """The tar in a gzipped tar, made in ``cache`` if it isn't there. Raises UserError."""
    status = path.stat()
    tar = cache / f"{path.name.removesuffix('.gz').removesuffix('.tgz')}-{status.st_size}-{status.st_mtime_ns}.tar"
    if not tar.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            with appearing(tar) as aside, gzip.open(path) as packed, aside.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{str(path)!r} can't be unpacked ({error}): download it again") from None
    return tar
