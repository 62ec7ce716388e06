"""The list of a source's images, and the plan made of it, on disk: any number of rows in bounded memory.

Both are Arrow IPC files. The plan has one file a split, whose batch i is shard i, so a worker reads only its shard's
rows. Between the two the rows pass twice through buckets: once by class (splits are drawn inside a class), once by
hash (the global shuffle).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyarrow import ipc

from data_prep import plan
from data_prep.plan import PLAN, SplitRule

BUCKET_ROWS = 250_000  # about 60 MB while a bucket is sorted
_OPTIONS = ipc.IpcWriteOptions(compression="lz4")


def write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write ``tables`` as batches of ``path``, which appears only when all is on disk. Returns the rows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 0
    with temporary.open("wb") as file:
        with ipc.new_file(file, schema, options=_OPTIONS) as writer:
            for table in tables:
                for batch in table.combine_chunks().to_batches():
                    writer.write_batch(batch)
                rows += len(table)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return rows


def batches(path: Path) -> Iterator[pa.Table]:
    """The batches of a file, one in memory at a time."""
    with path.open("rb") as file, ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])


def batch(path: Path, index: int) -> pa.Table:
    """One batch of a file; for a plan, the rows of shard ``index``."""
    with path.open("rb") as file, ipc.open_file(file) as reader:
        return pa.Table.from_batches([reader.get_batch(index)])


def make_plan(
    catalogue: Path,
    folder: Path,
    *,
    labels: dict[str, int],
    rule: SplitRule,
    seed: int,
    samples_per_shard: int,
) -> dict[str, int]:
    """Write ``plan-<split>.arrow`` files and ``duplicates.arrow`` to ``folder``; returns the samples of each split.

    ``duplicates`` are rows that another one of the same class and name overwrites.
    """
    count = sum(len(table) for table in batches(catalogue))
    buckets = max(1, -(-count // BUCKET_ROWS))
    by_class = _partition(batches(catalogue), _class_bucket, buckets, folder, "class")
    duplicates: list[pa.Table] = []

    def keyed() -> Iterator[pa.Table]:
        for path in by_class:
            table, repeated = plan.by_class(_whole(path))
            path.unlink()
            duplicates.append(repeated)
            yield plan.with_keys(table, labels, rule, seed)

    by_hash = _partition(keyed(), _hash_bucket, buckets, folder, "hash")
    counts = {}
    for split in dict.fromkeys((rule.split, rule.held_out)):
        shards = _cut((_split_of(plan.shuffled(_whole(path)), split) for path in by_hash), samples_per_shard)
        path = folder / f"plan-{split}.arrow"
        rows = write(path, PLAN, shards)
        if rows:
            counts[split] = rows
        else:
            path.unlink()
    for path in by_hash:
        path.unlink()
    write(folder / "duplicates.arrow", plan.CATALOGUE, duplicates)
    return counts


def _split_of(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def _whole(path: Path) -> pa.Table:
    with path.open("rb") as file, ipc.open_file(file) as reader:
        return reader.read_all()


def _class_bucket(table: pa.Table, buckets: int) -> npt.NDArray[np.int64]:
    return np.array([xxhash.xxh3_64_intdigest(wnid.as_py().encode()) % buckets for wnid in table["wnid"]], np.int64)


def _hash_bucket(table: pa.Table, buckets: int) -> npt.NDArray[np.int64]:
    """Grows with the hash, so that the buckets in order are the rows in order."""
    high: npt.NDArray[np.uint64] = table["hash"].to_numpy() >> np.uint64(32)
    return ((high * np.uint64(buckets)) >> np.uint64(32)).astype(np.int64)


def _partition(
    tables: Iterable[pa.Table],
    bucket_of: Callable[[pa.Table, int], npt.NDArray[np.int64]],
    buckets: int,
    folder: Path,
    name: str,
) -> list[Path]:
    """Spread rows over ``buckets`` files, each in the order of ``tables``."""
    paths = [folder / f"{name}-{bucket:05d}.arrow" for bucket in range(buckets)]
    schema = plan.CATALOGUE if name == "class" else PLAN
    writers = [ipc.new_file(str(path), schema, options=_OPTIONS) for path in paths]
    try:
        for table in tables:
            target = bucket_of(table, buckets)
            for bucket in np.unique(target):
                writers[bucket].write_table(table.filter(target == bucket))
    finally:
        for writer in writers:
            writer.close()
    return paths


def _cut(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows`` rows each, the last one shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        if count < rows:
            continue
        whole = pa.concat_tables(waiting)
        full = count // rows * rows
        for start in range(0, full, rows):
            yield whole.slice(start, rows)
        waiting, count = [whole.slice(full)], count - full
    if count:
        yield pa.concat_tables(waiting)
