"""Read the samples of a WebDataset tar from its headers and label members alone, as rows of an index.

Of a tar on the Hub that is one request of HUB_WINDOW bytes per image: in timm's tars a sample is KEY.jpg, KEY.json of a
few hundred bytes and KEY.cls (wds/build_wds.py of github.com/rwightman/imagenet-12k), each behind the PAX header that
webdataset's TarWriter makes of the fraction of its time: 6 KB between two images.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.images.prepare import LARGEST_FILE
from data_prep.sources.names import is_image
from data_prep.sources.rows import RejectRow
from data_prep.sources.sample_tars import LARGEST_LABEL, NO_CLASS, UNLABELLED, UNLABELLED_DETAIL, Label
from data_prep.sources.tar_headers import DamagedTarError, Read, scan
from pipeline.core import retry
from pipeline.core.errors import UserError, printable
from pipeline.dataset import hub_dataset
from pipeline.dataset.format import INDEX_SCHEMA
from pipeline.dataset.hub_reader import HubFile

WINDOW = 2048  # bytes: a .cls member with its header, and the next header, in one read
HUB_WINDOW = 8192  # bytes: a request costs far more than what it brings
NOT_JPEG = "not_jpeg"  # reason of a reject
JPEGS = frozenset({"jpg", "jpeg", "JPEG", "JPG"})
INDEX_ROWS = pa.schema([*INDEX_SCHEMA, ("class", pa.string())])  # the class as written in the tar


class Tar(NamedTuple):
    """A tar to index, and its place in the dataset."""

    location: str  # path or pinned hf:// URL
    size: int  # bytes
    split: str
    shard: int
    label: Label

    @property
    def name(self) -> str:
        return self.location.rpartition("/")[2]


class Samples(NamedTuple):
    """The samples of one tar according to its headers, one list per column."""

    keys: list[str]
    offsets: list[int]
    sizes: list[int]
    classes: list[str]


def index_tar(tar: Tar) -> tuple[pa.Table, list[RejectRow]]:
    """The samples of one tar, and its rejects. Raises UserError if the tar is damaged."""
    found, left_out = Samples([], [], [], []), list[RejectRow]()
    try:
        with _opened(tar) as (read, fd):
            _find_samples(read, fd, tar, found, left_out)
    except DamagedTarError as error:
        raise UserError(f"{tar.location!r} is damaged, {error}: download it again, or move it away") from None
    return _table(found, tar.split, tar.shard), left_out


@contextmanager
def _opened(tar: Tar) -> Iterator[tuple[Read, int | None]]:
    """Positioned reads of a tar, and its descriptor if it is a file."""
    if hub_dataset.is_hub(tar.location):
        file = HubFile(tar.location, retry.Patience())
        yield (
            _windowed(lambda offset, size: b"".join(file.read(offset, min(offset + size, tar.size))), HUB_WINDOW),
            None,
        )
        return
    fd = retry.open_file(tar.location)
    try:
        yield _windowed(lambda offset, size: retry.pread(fd, size, offset, tar.location), WINDOW), fd
    finally:
        os.close(fd)


def _windowed(read_at: Read, least: int) -> Read:
    """Positioned reads that fetch a little more than asked for, to include small members and the next header."""
    window, start = b"", 0

    def read(offset: int, size: int) -> bytes:
        nonlocal window, start
        at = offset - start
        if at < 0 or at + size > len(window):
            window, start, at = read_at(offset, max(size, least)), offset, 0
        return window[at : at + size]

    return read


def _find_samples(read: Read, fd: int | None, item: Tar, found: Samples, left_out: list[RejectRow]) -> None:
    tar, wanted = item.name, item.label
    key, offset, size, label = "", 0, -1, ""
    other = ""  # the ending of an image that isn't a JPEG

    def sample() -> None:
        if size > LARGEST_FILE:
            detail = f"{size:,} bytes, more than {LARGEST_FILE:,}"
            left_out.append(RejectRow(printable(f"{tar}/{key}"), "", size, "too_large", detail))
        elif size >= 0 and label == NO_CLASS:
            left_out.append(RejectRow(printable(f"{tar}/{key}"), "", size, UNLABELLED, UNLABELLED_DETAIL))
        elif size >= 0 and label:
            found.keys.append(printable(key))
            found.offsets.append(offset)
            found.sizes.append(size)
            found.classes.append(label)
        elif label and other:
            detail = f".{other} instead of .jpg"
            left_out.append(RejectRow(printable(f"{tar}/{key}"), "", 0, NOT_JPEG, printable(detail)))
        elif key:
            what = f"no .{wanted.ending} member with a class" if size >= 0 else "no JPEG"
            left_out.append(RejectRow(printable(f"{tar}/{key}"), "", max(size, 0), "incomplete", what))

    for name, start, length, kind, head in scan(read, 0, item.size, fd):
        stem, _, ending = name.partition(".")
        if not stem or ("/" in name and ("/" in ending or stem[-1] == "/")):  # a dot in a folder's name, a hidden file
            folder, slash, last = name.rpartition("/")
            stem, _, ending = last.partition(".")
            if not stem:
                continue
            stem = f"{folder}{slash}{stem}"
        if kind != "file":
            continue
        if stem != key:
            sample()
            key, size, label, other = stem, -1, "", ""
        if ending in JPEGS and size < 0:
            offset, size = start, length
        elif ending == wanted.ending or (not label and wanted.is_of(ending.lower())):
            label = wanted.read(head or read(start, min(length, LARGEST_LABEL))) or ""
        elif size < 0 and is_image(name):
            other = ending
    sample()


def _table(found: Samples, split: str, shard: int) -> pa.Table:
    """INDEX_ROWS; the labels come when all classes are known."""
    count = len(found.keys)

    def same(value: int, kind: str) -> pa.Array:
        return _numbers(np.full(count, value, kind))

    columns = {
        "key": _texts(found.keys),
        "split": _constant(split, count),
        "shard": same(shard, "int32"),
        "offset": _numbers(np.array(found.offsets, "int64")),
        "size": _numbers(np.array(found.sizes, "int32")),
        "label": same(-1, "int32"),
        "width": same(0, "int32"),
        "height": same(0, "int32"),
        "orientation": same(1, "uint8"),
        "recoded": _constant("", count),
        "xxh3_64": same(0, "uint64"),
        "class": _texts(found.classes),
    }
    return pa.table(columns, schema=INDEX_ROWS)


def _numbers(values: np.ndarray) -> pa.Array:
    """Like pa.array, which would import pandas: every start would wait a quarter of a second for it."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _texts(values: Sequence[str]) -> pa.StringArray:
    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype="int32")
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _constant(text: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(_numbers(np.zeros(count, "int8")), _texts([text]))
