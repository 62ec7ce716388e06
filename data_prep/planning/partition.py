"""Sort the catalogue's rows into shards on disk, in bounded memory: by class, then by the hash that shuffles them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyarrow import ipc

from data_prep.planning import assignment
from data_prep.planning.assignment import SplitRule
from data_prep.tables import _OPTIONS, CATALOGUE, PLAN, Writer, batches, whole
from pipeline.core.progress import Bar
from pipeline.dataset.format import REJECTS_SCHEMA

BUCKET_ROWS = 65_536  # about 100 MB while a bucket is sorted, and 217 files open for 14.2 million images


def write_plan(
    catalogue: Path,
    folder: Path,
    *,
    labels: dict[str, int],
    exclude: Collection[str],
    rule: SplitRule,
    seed: int,
    samples_per_shard: int,
    rejects: Writer,
    tar_name: Callable[[int], str] | None = None,
) -> dict[str, dict[str, int]]:
    """Write ``plan-<split>.arrow`` files to ``folder``; ``{split: {"samples": ..., "bytes": ...}}`` of the source.

    ``labels`` are the class indices by wnid; ``exclude`` the keys to skip. What is skipped goes to ``rejects``.
    ``tar_name`` names the tars (or folders), by number, in which image names may repeat.
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
            table = assignment.told_apart(table, tar_name) if tar_name else table
            table = leave_out(table, assignment.overwritten(table), "duplicate_name", "a later entry has the same name")
            unlisted = pa.array([wnid not in labels for wnid in table["wnid"].to_pylist()], pa.bool_())
            table = leave_out(table, unlisted, "class_not_listed", "not a class of --classes")
            table = assignment.with_keys(table, labels, rule, seed)
            yield leave_out(table, pc.is_in(table["key"], excluded), "excluded", "listed in --exclude")

    splits = [rule.split, rule.held_out] if rule.fraction or rule.first else [rule.split]
    sums: dict[str, dict[str, int]] = {}
    with Bar("planning", (1 + len(splits)) * buckets, "parts") as bar:

        def reported(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
            for table in tables:
                yield table
                bar.advance()

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
