"""The list of a source's images, and the plan made of it, on disk: any number of rows in bounded memory.

All are Arrow IPC files. The plan has one file a split, whose batch i is shard i, so a worker reads only its shard's
rows. Between catalogue and plan the rows pass twice through buckets: once by class (splits are drawn inside a class),
once by hash (the global shuffle).
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyarrow import ipc

from data_prep import progress
from data_prep.planning import assignment
from data_prep.planning.assignment import CATALOGUE, PLAN, SplitRule
from pipeline.core.files import naming
from pipeline.dataset.format import REJECTS_SCHEMA

BUCKET_ROWS = 65_536  # about 100 MB while a bucket is sorted, and 217 files open for 14.2 million images
BATCH_ROWS = 65_536
_OPTIONS = ipc.IpcWriteOptions(compression="lz4")


def temporary(path: Path) -> Path:
    """A name beside ``path`` that no other process takes, to be renamed to it."""
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")


class Writer:
    """Appends tables to an Arrow IPC file, which appears only when all is on disk. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema, batch_rows: int = BATCH_ROWS) -> None:
        self.rows = 0
        self._path, self._temporary, self._schema = path, temporary(path), schema
        self._batch_rows = batch_rows
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def __enter__(self) -> "Writer":
        self._file = self._temporary.open("wb")
        self._writer = ipc.new_file(self._file, self._schema, options=_OPTIONS)
        return self

    def add(self, table: pa.Table) -> None:
        """Append rows. They are gathered to batches of ``batch_rows``, or more where a table is longer."""
        if not len(table):  # which takes 9 kB all the same, once for each of 21,841 classes without rejects
            return
        self._waiting.append(table)
        self._waiting_rows += len(table)
        self.rows += len(table)
        if self._waiting_rows >= self._batch_rows:
            self._flush()

    def _flush(self) -> None:
        if self._waiting_rows:
            with naming(self._path):
                for batch in pa.concat_tables(self._waiting).combine_chunks().to_batches():
                    self._writer.write_batch(batch)
        self._waiting, self._waiting_rows = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with naming(self._path), self._file:
                if kind is None:
                    self._flush()
                    self._writer.close()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def table(records: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Tuples in the order of ``schema``'s fields as a table."""
    columns = zip(*records, strict=True) if records else [[] for _ in schema]
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        if pa.types.is_dictionary(field.type):
            arrays.append(pa.array(column, field.type.value_type).dictionary_encode().cast(field.type))
        else:
            arrays.append(pa.array(column, field.type))
    return pa.table(arrays, schema=schema)


def write(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """One table as a file of one batch."""
    with Writer(path, schema) as writer:
        writer.add(table)


def batches(path: Path) -> Iterator[pa.Table]:
    """The batches of a file, one in memory at a time."""
    with naming(path), path.open("rb") as file, ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])


def batch(path: Path, index: int) -> pa.Table:
    """One batch of a file; for a plan, the rows of shard ``index``."""
    with naming(path), path.open("rb") as file, ipc.open_file(file) as reader:
        return pa.Table.from_batches([reader.get_batch(index)])


def whole(path: Path) -> pa.Table:
    with naming(path), path.open("rb") as file, ipc.open_file(file) as reader:
        return reader.read_all()


def make_plan(
    catalogue: Path,
    folder: Path,
    *,
    labels: dict[str, int],
    exclude: Collection[str],
    rule: SplitRule,
    seed: int,
    samples_per_shard: int,
    rejects: Writer,
    tars: Sequence[str] = (),
) -> dict[str, dict[str, int]]:
    """Write ``plan-<split>.arrow`` files to ``folder``; ``{split: {"samples": ..., "bytes": ...}}`` of the source.

    ``labels`` are the class indices by wnid; ``exclude`` the keys to leave out. What is left out goes to ``rejects``.
    ``tars`` are the names of WebDataset tars in which image names may repeat.
    """
    count = sum(len(table) for table in batches(catalogue))
    buckets = max(1, -(-count // BUCKET_ROWS))
    excluded = pa.array(sorted(exclude), pa.string())

    def leave_out(table: pa.Table, mask: pa.Array, reason: str, detail: str) -> pa.Table:
        rejects.add(_as_rejects(table.filter(mask), reason, detail))
        return table.filter(pc.invert(mask))

    def keyed() -> Iterator[pa.Table]:
        for path in by_class:
            table = assignment.by_class(whole(path))
            path.unlink()
            table = assignment.told_apart(table, tars) if tars else table
            table = leave_out(table, assignment.overwritten(table), "duplicate_name", "a later entry has the same name")
            unlisted = pa.array([wnid not in labels for wnid in table["wnid"].to_pylist()], pa.bool_())
            table = leave_out(table, unlisted, "class_not_listed", "not a class of --classes")
            table = assignment.with_keys(table, labels, rule, seed)
            yield leave_out(table, pc.is_in(table["key"], excluded), "excluded", "named by --exclude")

    splits = [rule.split, rule.held_out] if rule.fraction or rule.first else [rule.split]
    sums: dict[str, dict[str, int]] = {}
    with progress.Bar("planning", (1 + len(splits)) * buckets, "parts") as bar:

        def reported(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
            for table in tables:
                yield table
                bar.report({"images": 1})

        by_class = _partition(batches(catalogue), CATALOGUE, _class_bucket, buckets, folder / "class")
        by_hash = _partition(reported(keyed()), PLAN, _hash_bucket, buckets, folder / "hash")
        for split in splits:
            path, size = folder / f"plan-{split}.arrow", 0
            with Writer(path, PLAN, 1) as writer:
                sorted_rows = (assignment.shuffled(_split_of(whole(bucket), split)) for bucket in by_hash)
                for shard in _cut(reported(sorted_rows), samples_per_shard):
                    size += pc.sum(shard["size"]).as_py()
                    writer.add(shard)
            if writer.rows:
                sums[split] = {"samples": writer.rows, "bytes": size}
            else:
                path.unlink()
    for path in by_hash:
        path.unlink()
    return sums


def _as_rejects(table: pa.Table, reason: str, detail: str) -> pa.Table:
    source = pc.binary_join_element_wise(table["wnid"], table["name"], "/")
    same = [pa.array([text] * len(table), pa.string()) for text in (reason, detail)]
    nothing = pa.nulls(len(table), pa.binary())
    return pa.table([source, table["wnid"], table["size"], *same, nothing], schema=REJECTS_SCHEMA)


def _split_of(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pc.equal(table["split"], split))


def _class_bucket(table: pa.Table, buckets: int) -> npt.NDArray[np.int64]:
    wnids: list[str] = table["wnid"].to_pylist()
    bucket = {wnid: xxhash.xxh3_64_intdigest(wnid.encode()) % buckets for wnid in set(wnids)}
    return np.array([bucket[wnid] for wnid in wnids], np.int64)


def _hash_bucket(table: pa.Table, buckets: int) -> npt.NDArray[np.int64]:
    """Grows with the hash, so that the buckets in order are the rows in order."""
    high: npt.NDArray[np.uint64] = table["hash"].to_numpy() >> np.uint64(32)
    return ((high * np.uint64(buckets)) >> np.uint64(32)).astype(np.int64)


def _partition(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    bucket_of: Callable[[pa.Table, int], npt.NDArray[np.int64]],
    buckets: int,
    stem: Path,
) -> list[Path]:
    """Spread rows over ``buckets`` files, each in the order of ``tables``."""
    paths = [stem.with_name(f"{stem.name}-{bucket:05d}.arrow") for bucket in range(buckets)]
    writers = [ipc.new_file(str(path), schema, options=_OPTIONS) for path in paths]
    try:
        for table in tables:
            target = bucket_of(table, buckets)
            order = np.argsort(target, kind="stable")
            edges = np.searchsorted(target[order], np.arange(buckets + 1))
            grouped = table.take(order)
            for bucket in np.unique(target):
                writers[bucket].write_table(grouped.slice(edges[bucket], edges[bucket + 1] - edges[bucket]))
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
        joined = pa.concat_tables(waiting)
        full = count // rows * rows
        for start in range(0, full, rows):
            yield joined.slice(start, rows)
        waiting, count = [joined.slice(full)], count - full
    if count:
        yield pa.concat_tables(waiting)
