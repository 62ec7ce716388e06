"""Scan a source and plan its shards, once: the first half of making a data set.

The plan is made aside and renamed, so it is complete or not there. Where several tasks start at once each makes it;
all plans are the same, and the first one stays.
"""

import collections
import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyarrow import ipc

from data_prep import process_pool as workers
from data_prep import progress, tables, work_folder
from data_prep.planning import assignment, stream_buckets
from data_prep.planning.assignment import SplitRule
from data_prep.sources import read_parts, streams
from data_prep.sources.names import ENDINGS
from data_prep.sources.parts import find_parts
from data_prep.sources.rows import ImageRow, Row
from data_prep.sources.source import Source, told_apart_by
from data_prep.tables import _OPTIONS, CATALOGUE, PLAN, Writer, batches, whole
from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.dataset import class_lists
from pipeline.dataset.format import REJECTS_SCHEMA

NOT_DEFECTS = frozenset(
    {"class_not_listed", "excluded", "other_file", "duplicate_name", "too_small", "system_file", "empty_class"}
)
ONLY_IF_SET = ("label",)  # options that a dataset's description has only if they were given
STREAM_BATCH = 20_000  # rows


@dataclass(frozen=True)
class PlanOptions:
    """What the plan depends on, beside the source."""

    classes: str
    exclude: frozenset[str]  # keys
    rule: SplitRule
    seed: int
    samples_per_shard: int
    identity: dict[str, Any]  # all options that change the data set's bytes
    workers: int
    tasks: int


@dataclass(frozen=True)
class Planned:
    """plan.json."""

    identity: dict[str, Any]
    input: list[list[Any]]  # path and size of each of INPUT's files
    samples: dict[str, int]  # images to read, by split
    bytes: dict[str, int]  # of these images
    wnids: list[str]
    names: list[str]
    defects: dict[str, int]  # rejects so far that count as defects, by reason
    streamed: bool  # whether each task has to read the stream again for its images


def planned(output: Path, source: Source, options: PlanOptions) -> Planned:
    """The plan in OUTPUT's work folder, made now unless it is there. Raises UserError where it is another run's."""
    folder = work_folder.work_folder(output) / "plan"
    if not (folder / "plan.json").is_file():
        aside = files.temporary(folder)
        files.fresh(aside)
        (work_folder.work_folder(output) / "done").mkdir(exist_ok=True)
        try:
            _make(output, source, options, aside)
            if not (folder / "plan.json").is_file():  # else another task was faster
                aside.rename(folder)
        except OSError:
            if not (folder / "plan.json").is_file():
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if not folder.exists():
                if options.tasks == 1:
                    shutil.rmtree(stream_folder(output), ignore_errors=True)
                with contextlib.suppress(OSError):  # somebody else works there
                    (work_folder.work_folder(output) / "done").rmdir()
    found = Planned(**json.loads((folder / "plan.json").read_text()))
    same_options(output, found.identity, options.identity, "an unfinished")
    if found.input != _fingerprint(source):
        raise UserError(
            f"OUTPUT {str(output)!r} was begun with another INPUT, or INPUT has changed since: give the same one, or "
            "delete OUTPUT to start over"
        )
    return found


def same_options(output: Path, made: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    """Raise UserError where a data set that is there was made with other options than asked for."""
    for field in dict.fromkeys([*asked, *ONLY_IF_SET]):
        if made.get(field) != asked.get(field):
            raise UserError(
                f"OUTPUT {str(output)!r} holds {what} data set made with {field} {made.get(field)!r}, "
                f"not {asked.get(field)!r}: choose another folder, or delete this one"
            )


def stream_folder(output: Path) -> Path:
    """Where the one task of a run lays down the images of a stream."""
    return work_folder.work_folder(output).resolve() / "stream"


def _fingerprint(source: Source) -> list[list[Any]]:
    found: list[list[Any]] = []
    for location in source.locations:
        path = Path(location)
        remote = streams.is_remote(location)
        size = path.stat().st_size if path.is_file() and not remote else 0
        found.append([source.names[location] if remote else str(path.resolve()), size])
    return found


def _make(output: Path, source: Source, options: PlanOptions, folder: Path) -> None:
    counts: collections.Counter[str] = collections.Counter()
    defects: collections.Counter[str] = collections.Counter()
    with tables.Writer(folder / "rejects.arrow", REJECTS_SCHEMA) as rejects:
        with tables.Writer(folder / "catalogue.arrow", CATALOGUE) as images:
            for found, rejected in _scanned(output, source, options):
                images.add(found)
                rejects.add(rejected)
                counts.update(found["wnid"].to_pylist())
                defects.update(rejected["reason"].to_pylist())
        if not counts:
            what = ", ".join(f"{count} {reason}" for reason, count in defects.most_common()) or "nothing else either"
            hint = ""
            if source.form == "webdataset":
                hint = " If the class isn't in .cls members give --label; for one class per tar give --source tars"
            raise UserError(
                f"INPUT {source.locations[0]!r} holds no images (files ending in {', '.join(sorted(ENDINGS))}; it has "
                f"{what}): is it the right path?{hint}"
            )
        if source.form == "webdataset":
            check_numbers(source, options.classes, counts)
        wnids = class_lists.listed(options.classes)
        wnids = class_lists.derived(options.classes, counts) if wnids is None else wnids
        if not counts.keys() & set(wnids):
            raise UserError(f"INPUT has no image of the {len(wnids)} classes of --classes {options.classes}")
        sums = make_plan(
            folder / "catalogue.arrow",
            folder,
            labels={wnid: index for index, wnid in enumerate(wnids)},
            exclude=options.exclude,
            rule=options.rule,
            seed=options.seed,
            samples_per_shard=options.samples_per_shard,
            rejects=rejects,
            tar_name=told_apart_by(source),
        )
    (folder / "catalogue.arrow").unlink()
    if options.exclude:
        reasons = tables.whole(folder / "rejects.arrow")["reason"].to_pylist()
        count = len(options.exclude)
        if (unknown := count - reasons.count("excluded")) == count:
            raise UserError(
                f"none of the {count} keys of --exclude names an image of INPUT: is it the list of another?"
            )
        if unknown:
            print(f"warning: {unknown} of {count} keys of --exclude name no image of INPUT", file=sys.stderr)
    if not sums:
        raise UserError("no image is left to write: --exclude names all of them")
    known = source.devkit.names if source.devkit else {}
    result = Planned(
        identity=options.identity,
        input=_fingerprint(source),
        samples={split: sums[split]["samples"] for split in sums},
        bytes={split: sums[split]["bytes"] for split in sums},
        wnids=wnids,
        names=[known.get(wnid) or class_lists.name_of(wnid) for wnid in wnids],
        defects={reason: count for reason, count in defects.items() if reason not in NOT_DEFECTS},
        streamed=not source.seekable and options.tasks > 1,
    )
    files.write_text(folder / "plan.json", json.dumps(dataclasses.asdict(result), indent=1) + "\n")


def check_numbers(source: Source, classes: str, counts: dict[str, int]) -> None:
    """Raise UserError for names among class numbers, which would give the numbers other indices; warn of gaps."""
    if source.class_list or class_lists.listed(classes) is not None:
        return
    numbers = sorted(wnid for wnid in counts if wnid.isdecimal())
    odd = sorted(counts.keys() - set(numbers))
    if numbers and odd:
        raise UserError(
            f"INPUT has the label {odd[0]!r} ({counts[odd[0]]} images) among class numbers such as {int(numbers[0])}: "
            "leave these samples out, or name all classes, in the order of their numbers, by --classes FILE"
        )
    if numbers and int(numbers[-1]) >= len(numbers):
        missing = next(number for number in range(len(numbers) + 1) if f"{number:05d}" not in counts)
        print(
            f"warning: no image of INPUT has class number {missing}, so greater numbers get smaller indices: to keep "
            "them, name all classes by --classes FILE",
            file=sys.stderr,
        )


def _scanned(output: Path, source: Source, options: PlanOptions) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(images, rejects) tables of the whole source."""
    parts = find_parts(source)
    if source.seekable:
        with progress.Bar("scanning", len(parts), "parts") as bar:
            for found in workers.run(read_parts.scan_part, parts, options.workers, begin_here=True):
                bar.report({"images": 1})
                yield found
        return
    size = sum(item[1] for item in _fingerprint(source))
    with progress.Bar("reading the stream", size, "bytes") as bar:
        rows: Iterator[Row] = (
            row for part in parts for row in read_parts.rows(part, lambda count: bar.report({"images": count}))
        )
        if options.tasks == 1:
            rows = stream_buckets.lay_down(rows, files.fresh(stream_folder(output)), options.seed)
        batch: list[Row] = []
        for row in rows:
            batch.append(row._replace(data=b"") if isinstance(row, ImageRow) else row)
            if len(batch) >= STREAM_BATCH:
                yield read_parts.tables(batch)
                batch = []
        yield read_parts.tables(batch)


BUCKET_ROWS = 65_536  # about 100 MB while a bucket is sorted, and 217 files open for 14.2 million images


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
    tar_name: Callable[[int], str] | None = None,
) -> dict[str, dict[str, int]]:
    """Write ``plan-<split>.arrow`` files to ``folder``; ``{split: {"samples": ..., "bytes": ...}}`` of the source.

    ``labels`` are the class indices by wnid; ``exclude`` the keys to leave out. What is left out goes to ``rejects``.
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
