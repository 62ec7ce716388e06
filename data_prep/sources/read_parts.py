"""Read the rows of a part: its images for the catalogue, and rejects with reasons.

The images of a stream come with their bytes, because it can be read only once.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from data_prep import tables as catalogue
from data_prep.images.prepare import LARGEST_FILE
from data_prep.sources import names, sample_tars, streams, tar_images
from data_prep.sources.folders import entries_of, entry_is, files_below, size_of
from data_prep.sources.rows import OTHER_FILE, ImageRow, RejectRow, Row
from data_prep.sources.source import Form, Part, checked, class_of_label, opened
from data_prep.sources.tar_images import Tar
from data_prep.tables import CATALOGUE
from pipeline.core import retry
from pipeline.core.errors import printable
from pipeline.dataset.format import REJECTS_SCHEMA


def rows(part: Part, on_bytes: Any = lambda _: None) -> Iterator[Row]:
    """The rows of one part. ``on_bytes`` is called with the number of bytes read from a stream."""
    source = part.source
    if part.beside:
        yield from _rows_beside(part)
    elif source.form == "folder":
        yield from _folder_rows(part)
    elif source.seekable:
        with opened(part.location, part.number) as (tar, size):
            yield from checked(_tar_rows(part, tar, size), part.location)
    else:
        stream = streams.open_stream(part.location, on_bytes)
        tar = Tar(stream.read, source.names[part.location], streaming=True, number=part.number)
        yield from checked(_tar_rows(part, tar, None), part.location)
        while not stream.ended:  # read past the tar: errors of gzip's checksum and of the command show at the end
            stream.skip()


def _tar_rows(part: Part, tar: Tar, size: int | None) -> Iterator[Row]:
    source = part.source
    if source.form == "webdataset":
        name_of = unquote if source.ours else str
        return sample_tars.samples(tar, size, source.label, lambda label: class_of_label(source, label), name_of)
    if part.wnid:
        alone = source.form == "tars"
        return tar_images.class_tar(tar, part.start, part.end, part.wnid, whole=alone, guessed=source.guessed and alone)
    return tar_images.release_tar(tar, size, source.devkit, nested=not source.seekable)


def _folder_rows(part: Part) -> Iterator[Row]:
    devkit = part.source.devkit
    empty = bool(part.wnid)
    for entry in files_below(part.location):
        inside = os.path.relpath(entry.path, part.location)
        found = _file_row(part, entry, inside, entry.name if devkit else inside)
        empty = empty and not isinstance(found, ImageRow)
        yield found
    if empty:
        yield RejectRow(f"{part.wnid}/", part.wnid, 0, "empty_class", tar_images.EMPTY_CLASS)


def _file_row(part: Part, entry: "os.DirEntry[str]", inside: str, name: str) -> Row:
    devkit = part.source.devkit
    wnid = (devkit.wnid_of(entry.name) or "") if devkit else part.wnid
    if not wnid and (named := names.class_in_name(entry.name)) and not devkit and "/" not in inside:
        wnid, name = named
    source = printable(f"{part.wnid}/{inside}" if part.wnid else name)
    if names.is_system_path(inside):
        return RejectRow(source, wnid, size_of(entry), "system_file", tar_images.SYSTEM_FILE)
    if not entry_is(entry, os.DirEntry.is_file):
        return RejectRow(source, wnid, 0, "not_a_file", "not a file or a link to one")
    size = retry.steadily(entry.stat, entry.path).st_size
    if not names.is_image(entry.name):
        return RejectRow(source, wnid, size, OTHER_FILE, "not an image extension")
    if size > LARGEST_FILE:
        return RejectRow(source, wnid, size, "too_large", f"{size:,} bytes, more than {LARGEST_FILE:,}")
    if not wnid:
        return RejectRow(source, "", size, "no_class", "not a name of the --devkit" if devkit else "in no class folder")
    return ImageRow(wnid, printable(name), entry.path, 0, size)


def _rows_beside(part: Part) -> Iterator[Row]:
    """Rejects for the files in INPUT's folder that belong to none of its classes or tars."""
    source = part.source
    for entry in entries_of(part.location):
        if source.form == "folder" and entry_is(entry, os.DirEntry.is_dir) and not names.is_system(entry.name):
            continue
        if source.form != "folder" and entry.path not in source.beside:
            continue
        for file in files_below(entry.path) if entry.is_dir(follow_symlinks=False) else [entry]:
            inside = os.path.relpath(file.path, part.location)
            yield _reject_beside(file, printable(inside), source.form)


def _reject_beside(entry: "os.DirEntry[str]", inside: str, form: Form) -> RejectRow:
    size = size_of(entry)
    if names.is_system_path(inside):
        return RejectRow(inside, "", size, "system_file", tar_images.SYSTEM_FILE)
    what = "class folders" if form == "folder" else "tars"
    if not names.is_image(entry.name):
        return RejectRow(inside, "", size, OTHER_FILE, f"beside the {what}, not an image extension")
    return RejectRow(inside, "", size, "no_class", f"an image beside the {what}")


def tables(found: Sequence[Row]) -> tuple[pa.Table, pa.Table]:
    """CATALOGUE and REJECTS_SCHEMA rows."""
    images = [row for row in found if isinstance(row, ImageRow)]
    rejects = [row for row in found if isinstance(row, RejectRow)]
    encoded = {file: os.fsencode(file) for file in {row.file for row in images}}
    records = [(row.wnid, row.name, encoded[row.file], row.offset, row.size, row.tar) for row in images]
    return catalogue.table(records, CATALOGUE), catalogue.table(rejects, REJECTS_SCHEMA)


def scan_part(part: Part) -> tuple[pa.Table, pa.Table]:
    """CATALOGUE and REJECTS_SCHEMA rows of one part of a seekable source or folder."""
    return tables(list(rows(part)))
