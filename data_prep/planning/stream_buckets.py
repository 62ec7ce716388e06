"""Make streams seekable: write their images to files, close to the order in which they will be read.

With one task, one pass over the stream is enough: each image goes to one of BUCKETS files by the hash that orders the
dataset, and a shard later reads from one or two of them. With several tasks, each reads the stream once for the names
and once more to write the images of its own shards: tasks share nothing.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import tables
from data_prep.planning import assignment
from data_prep.process_pool import Report
from data_prep.sources.class_orders import wnid_in
from data_prep.sources.rows import ImageRow, Row
from data_prep.sources.streams import Stream, open_stream
from pipeline.core.errors import UserError
from pipeline.core.files import write_all

BUCKETS = 128  # files open at once; 1.2 TB of ImageNet-21K make buckets of about 10 GB, 25 shards each
GROUPS = 256


def lay_down(rows: Iterator[Row], folder: Path, seed: int) -> Iterator[Row]:
    """Write each image's bytes to a bucket file in ``folder``; yields the rows with the bytes' new location."""
    paths = [folder / f"bucket-{bucket:03d}" for bucket in range(BUCKETS)]
    fds = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666) for path in paths]
    ends = [0] * BUCKETS
    try:
        for row in rows:
            if isinstance(row, ImageRow):
                wnid = row.wnid
                if wnid.isdecimal():  # the key that it will have if its number turns out to mean this class
                    wnid = wnid_in(row.name) or wnid
                key = assignment.key_of(wnid, row.name)
                bucket = int(assignment.hashes([key], seed)[0]) * BUCKETS >> 64
                write_all(fds[bucket], row.data)
                yield row._replace(file=str(paths[bucket]), offset=ends[bucket], data=b"")
                ends[bucket] += row.size
            else:
                yield row
    finally:
        for fd in fds:
            os.close(fd)


def lay_down_shards(
    shards: list[tuple[Path, int, Path]],
    streams: Mapping[str, str],
    folder: Path,
    report: Callable[[Report], None],
) -> None:
    """Read the streams again and write the images of some shards to files in ``folder``.

    ``shards`` are (plan file, batch, file for the locations). The last one gets, in the batch's row order, the offset
    of each image in ``group_path(folder, position of the shard in shards)``. ``streams``: the locations to read, by
    their names in the plan.
    """
    columns = [_wanted(plan_file, batch) for plan_file, batch, _ in shards]
    counts = [len(sizes) for _, _, sizes in columns]
    names: list[bytes] = sorted({name for files, _, _ in columns for name in files.unique().to_pylist()})
    files = np.concatenate([pc.index_in(part, pa.array(names, pa.binary())).to_numpy() for part, _, _ in columns])
    offsets = np.concatenate([part for _, part, _ in columns])
    sizes = np.concatenate([part for _, _, part in columns])
    del columns
    shard = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
    order = np.lexsort((offsets, files))
    fds = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666) for path in _group_paths(folder, len(shards))]
    locations = np.empty(len(order), np.int64)
    ends = [0] * len(fds)
    try:
        current, stream = -1, None
        for row in order:
            if files[row] != current or stream is None:
                _read_out(stream)
                current = files[row]
                stream = open_stream(streams[os.fsdecode(names[current])])
            group, size = shard[row] % GROUPS, int(sizes[row])
            data = stream.read(int(offsets[row]), size)
            if len(data) < size:
                raise UserError(
                    f"INPUT {os.fsdecode(names[current])!r} was shorter when it was read again: give a source that "
                    "doesn't change, then run this task again"
                )
            write_all(fds[group], data)
            locations[row] = ends[group]
            ends[group] += size
            report({"images": 1, "bytes": size})
        _read_out(stream)
    finally:
        for fd in fds:
            os.close(fd)
    for part, (_, _, path) in zip(np.split(locations, np.cumsum(counts)[:-1]), shards, strict=True):
        np.save(path, part, allow_pickle=False)


def _read_out(stream: Stream | None) -> None:
    """Read to the end, which alone shows whether a command has failed or gzip's checksum is right."""
    while stream and not stream.ended:
        stream.skip()


def group_path(folder: Path, position: int) -> Path:
    return folder / f"group-{position % GROUPS:03d}"


def _group_paths(folder: Path, shards: int) -> list[Path]:
    return [group_path(folder, position) for position in range(min(shards, GROUPS))]


def _wanted(plan_file: Path, batch: int) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    rows = tables.batch(plan_file, batch)
    return rows["file"], rows["offset"].to_numpy(), rows["size"].to_numpy().astype(np.int32)
