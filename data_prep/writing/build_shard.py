"""Make one shard from its rows of the plan: read, check and write its images, and record what was written.

Everything unfinished is in ``OUTPUT/.work``: the plan, and the index rows and rejects of each finished shard. A shard's
tar appears by renaming, then its index rows; the shard is done if both exist and the hash is right. Tasks share only
this folder.
"""

import collections
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from pyarrow import ipc

from data_prep import process_pool, tables
from data_prep.images import prepare
from data_prep.images.jpeg_header import RejectedError
from data_prep.images.prepare import ImageOptions
from data_prep.sources.rows import RejectRow
from data_prep.work_folder import done_path, plan_path
from data_prep.writing.tar_writer import ShardWriter
from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.files import xxh3_128
from pipeline.dataset import format as dataset_format
from pipeline.dataset.format import INDEX_SCHEMA, REJECTS_SCHEMA, ShardInfo

READ_AHEAD = 32  # images that the kernel is asked to read in advance
THUMBNAILS = 8  # rejected images per shard that keep a thumbnail


@dataclass(frozen=True)
class ShardTask:
    """One shard to make."""

    output: Path
    split: str
    shard: int
    options: ImageOptions
    laid_down: Path | None = None  # work file with the shard's images, if the source is a stream
    loose: bool = False  # whether each image is a file of its own

    @property
    def tar(self) -> Path:
        return self.output / dataset_format.shard_file_name(self.split, self.shard)

    @property
    def plan(self) -> Path:
        return plan_path(self.output, self.split)

    @property
    def done(self) -> Path:
        return done_path(self.output, self.split, self.shard)

    @property
    def locations(self) -> Path:
        return self.done.with_suffix(".locations.npy")


def keep_or_make(task: ShardTask) -> ShardInfo:
    """Keep the shard if it is finished and intact, otherwise make it. Reports images, bytes and rejects."""
    info = read_done(task.done)
    if info and is_intact(task.output, info):
        rejects = tables.whole(task.done.with_suffix(".rejects"))["reason"].to_pylist()
        process_pool.report({"images": info.samples + len(rejects), "kept": 1, **collections.Counter(rejects)})
        return info
    return make_shard(task)


def make_shard(task: ShardTask) -> ShardInfo:
    """Read, check and write the images of one shard, and its index rows and rejects in the work folder."""
    rows = tables.batch(task.plan, task.shard)
    wnids, names, keys, labels = (rows[name].to_pylist() for name in ("wnid", "name", "key", "label"))
    files, offsets, sizes = (rows[name].to_pylist() for name in ("file", "offset", "size"))
    if task.laid_down:
        files = [os.fsencode(task.laid_down)] * len(files)
        offsets = np.load(task.locations, allow_pickle=False).tolist()
    written: list[tuple[Any, ...]] = []
    rejects: list[RejectRow] = []
    seen: set[str] = set()
    with SourceFiles(task.loose) as source, ShardWriter(task.tar) as writer:
        for row, key in enumerate(keys):
            if row % READ_AHEAD == 0:
                ahead = slice(row + READ_AHEAD, row + 2 * READ_AHEAD)
                source.expect(files[ahead], offsets[ahead], sizes[ahead])
            data = b""
            try:
                if key in seen:
                    raise RejectedError("duplicate_key", f"another image of this shard has the key {key!r}")
                data = source.read(files[row], offsets[row], sizes[row])
                picture = prepare.prepare(data, task.options)
            except RejectedError as error:
                where = f"{wnids[row]}/{names[row]}"
                seen_of_it = prepare.remains(data) if len(rejects) < THUMBNAILS else None
                rejects.append(RejectRow(where, wnids[row], sizes[row], error.reason, error.detail, seen_of_it))
                process_pool.report({error.reason: 1})
            else:
                seen.add(key)
                at = writer.add(key, picture.data, labels[row])
                digest = xxhash.xxh3_64_intdigest(picture.data)
                written.append(
                    (
                        *(key, task.split, task.shard, at, len(picture.data), labels[row]),
                        *(picture.width, picture.height, picture.orientation, picture.recoded, digest),
                    )
                )
            process_pool.report({"images": 1, "bytes": sizes[row]})
    info = ShardInfo(task.split, task.shard, len(written), writer.bytes, writer.xxh3_128)
    tables.write(task.done.with_suffix(".rejects"), tables.table(rejects, REJECTS_SCHEMA), REJECTS_SCHEMA)
    schema = INDEX_SCHEMA.with_metadata({"shard": json.dumps(dataclasses.asdict(info))})
    tables.write(task.done, tables.table(written, INDEX_SCHEMA), schema)
    return info


class SourceFiles:
    """Positioned reads from the files of a source, keeping the last one open. ``loose``: each read is a whole file."""

    def __init__(self, loose: bool = False) -> None:
        self._loose = loose
        self._file = b""
        self._fd = -1

    def __enter__(self) -> "SourceFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def expect(self, files: list[bytes], offsets: list[int], sizes: list[int]) -> None:
        """Have the kernel fetch these soon; only for those that lie in the file that is open."""
        for file, offset, size in zip(files, offsets, sizes, strict=True):
            if file == self._file:
                os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, file: bytes, offset: int, size: int) -> bytes:
        """The bytes. Raises RejectedError if the user may not read them, UserError if the file has changed or the file
        system fails, which says nothing about the image."""
        try:
            if file != self._file:
                self._close()
                self._fd = retry.open_file(file)
                self._file = file
            if self._loose and (found := retry.steadily(lambda: os.fstat(self._fd), file).st_size) != size:
                raise UserError(
                    f"{os.fsdecode(file)!r} has changed since INPUT was listed ({size} bytes then, {found} now): "
                    "restore it and run again, or delete OUTPUT to start over"
                )
            data = retry.pread(self._fd, size, offset, file)
            while len(data) < size:
                more = retry.pread(self._fd, size - len(data), offset + len(data), file)
                if not more:
                    raise RejectedError("truncated", f"the source file ends {size - len(data)} bytes early")
                data += more
        except FileNotFoundError:
            raise UserError(f"{os.fsdecode(file)!r} was in INPUT and is gone: restore it, then run again") from None
        except PermissionError as error:
            raise RejectedError("unreadable", f"{error.strerror}") from None
        return data

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._file, self._fd = b"", -1


def read_done(path: Path) -> ShardInfo | None:
    """The description of a finished shard; ``None`` if it isn't finished."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, ipc.open_file(file) as reader:
            return ShardInfo(**json.loads(reader.schema.metadata[b"shard"]))
    except (pa.ArrowInvalid, OSError):  # partly written when the machine lost power
        return None


def is_intact(output: Path, info: ShardInfo) -> bool:
    """Whether the tar on disk is the one that was written."""
    path = output / info.file_name
    return path.is_file() and path.stat().st_size == info.bytes and xxh3_128(path) == info.xxh3_128
