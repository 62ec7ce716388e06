"""Scan a source and plan its shards, once: the first half of making a dataset.

The plan is written to a temporary folder and renamed, so it is either complete or absent. If several tasks start at
once, each makes it; all plans are the same, and the first one is kept.
"""

import collections
import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_prep import process_pool as workers
from data_prep import tables, work_folder
from data_prep.planning import stream_buckets
from data_prep.planning.assignment import SplitRule
from data_prep.planning.partition import write_plan
from data_prep.sources import read_parts
from data_prep.sources.class_orders import NamedNumbers, order_of
from data_prep.sources.parts import find_parts
from data_prep.sources.rows import OTHER_FILE, ImageRow, Row
from data_prep.sources.sample_tars import UNLABELLED, all_unlabelled
from data_prep.sources.source import Source, told_apart_by
from data_prep.tables import CATALOGUE
from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.files import is_remote
from pipeline.core.progress import Bar
from pipeline.dataset import class_lists
from pipeline.dataset.format import REJECTS_SCHEMA
from pipeline.imaging.file_names import DATASET_ENDINGS, counted_endings

NOT_DEFECTS = frozenset(
    {
        *("class_not_listed", "excluded", OTHER_FILE, "duplicate_name", "too_small", "system_file", "empty_class"),
        UNLABELLED,
    }
)
ONLY_IF_SET = ("label", "input")  # options that a dataset's description has only if they were given
STREAM_BATCH = 20_000  # rows


@dataclass(frozen=True)
class PlanOptions:
    """What the plan depends on, beside the source."""

    classes: str
    exclude: frozenset[str]  # keys
    rule: SplitRule
    seed: int
    samples_per_shard: int
    identity: dict[str, Any]  # all options that change the dataset's bytes
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
    """The plan in OUTPUT's work folder, made now unless it exists. Raises UserError if it is another run's."""
    folder = work_folder.work_folder(output) / "plan"
    if not (folder / "plan.json").is_file():
        aside = files.temporary(folder)
        files.fresh(aside)
        (work_folder.work_folder(output) / "done").mkdir(exist_ok=True)
        try:
            _make(output, source, options, aside)
            if not (folder / "plan.json").is_file():  # else another task has made it
                files.put_in_place(aside, folder)
        except OSError:
            if not (folder / "plan.json").is_file():
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if not folder.exists():
                if options.tasks == 1:
                    shutil.rmtree(stream_folder(output), ignore_errors=True)
                with contextlib.suppress(OSError):  # another process uses the folder
                    (work_folder.work_folder(output) / "done").rmdir()
    found = _read_plan(folder / "plan.json", f"delete OUTPUT {str(output)!r} to start over")
    same_options(output, found.identity, options.identity, "an unfinished")
    if found.input != _fingerprint(source):
        raise UserError(
            f"OUTPUT {str(output)!r} was started with another INPUT, or INPUT has changed since: give the same "
            "INPUT, or delete OUTPUT to start over"
        )
    return found


def _read_plan(path: Path, remedy: str) -> Planned:
    try:
        return Planned(**files.read_json(path, remedy))
    except TypeError as error:
        raise UserError(f"{str(path)!r} is damaged or of another version ({error}): {remedy}") from error


def same_options(output: Path, made: dict[str, Any], asked: dict[str, Any], what: str) -> None:
    """Raise UserError if the existing dataset was made with other options than those given."""
    for field in dict.fromkeys([*asked, *ONLY_IF_SET]):
        if made.get(field) != asked.get(field):
            raise UserError(
                f"OUTPUT {str(output)!r} contains {what} dataset made with {field} {made.get(field)!r}, "
                f"not {asked.get(field)!r}: choose another folder, or delete this one"
            )


def stream_folder(output: Path) -> Path:
    """The folder to which a run with a single task writes the images of a stream."""
    return work_folder.work_folder(output).resolve() / "stream"


def _fingerprint(source: Source) -> list[list[Any]]:
    found: list[list[Any]] = []
    for location in source.locations:
        path = Path(location)
        remote = is_remote(location)
        size = path.stat().st_size if path.is_file() and not remote else 0
        found.append([source.names[location] if remote else str(path.resolve()), size])
    return found


def _make(output: Path, source: Source, options: PlanOptions, folder: Path) -> None:
    counts: collections.Counter[str] = collections.Counter()
    defects: collections.Counter[str] = collections.Counter()
    others: list[str] = []
    named = NamedNumbers()
    catalogue = folder / "catalogue.arrow"
    with tables.Writer(folder / "rejects.arrow", REJECTS_SCHEMA) as rejects:
        with tables.Writer(catalogue, CATALOGUE) as images:
            for found, rejected in _scanned(output, source, options):
                images.add(found)
                rejects.add(rejected)
                counts.update(found["wnid"].to_pylist())
                if source.unordered:
                    named.add(found["wnid"], found["name"])
                defects.update(rejected["reason"].to_pylist())
                if not counts:
                    others += rejected.filter(pc.equal(rejected["reason"], OTHER_FILE))["source"].to_pylist()
        if not counts and defects[UNLABELLED]:
            raise all_unlabelled(f"INPUT {source.locations[0]!r}", defects[UNLABELLED])
        if not counts:
            what = ", ".join(f"{count} {reason}" for reason, count in defects.most_common()) or "no other files"
            what += f": {endings}" if (endings := counted_endings(others)) else ""
            hint = ""
            if source.form == "webdataset":
                hint = ". If the class isn't in .cls members give --label; for one class per tar give --source tars"
            raise UserError(
                f"INPUT {source.locations[0]!r} contains no images (files ending in "
                f"{', '.join(sorted(DATASET_ENDINGS))}; it has {what}): check the path, or convert the images{hint}"
            )
        wnids = class_lists.listed(options.classes)
        if source.form == "webdataset":
            class_of: dict[str, str] = {}
            if source.unordered and options.classes != "numbers":
                _, class_of = order_of(counts, named, wnids)
            if class_of:
                counts = renamed(catalogue, class_of)
            else:
                check_numbers(source, options.classes, counts)
        wnids = class_lists.derived(options.classes, counts) if wnids is None else wnids
        if not counts.keys() & set(wnids):
            raise UserError(f"INPUT has no image of the {len(wnids)} classes in --classes {options.classes}")
        sums = write_plan(
            catalogue,
            folder,
            labels={wnid: index for index, wnid in enumerate(wnids)},
            exclude=options.exclude,
            rule=options.rule,
            seed=options.seed,
            samples_per_shard=options.samples_per_shard,
            rejects=rejects,
            tar_name=told_apart_by(source),
        )
    catalogue.unlink()
    if options.exclude:
        reasons = tables.whole(folder / "rejects.arrow")["reason"].to_pylist()
        count = len(options.exclude)
        if (unknown := count - reasons.count("excluded")) == count:
            raise UserError(
                f"none of the {count} keys in --exclude is an image of INPUT: give the list made for this INPUT"
            )
        if unknown:
            print(f"warning: {unknown} of {count} keys in --exclude are not images of INPUT", file=sys.stderr)
    if not sums:
        raise UserError("no image is left to write: --exclude lists all of them")
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


def renamed(catalogue: Path, class_of: Mapping[str, str]) -> "collections.Counter[str]":
    """Give the images in a catalogue the classes that their class numbers mean; the number of images of each class."""
    counts: collections.Counter[str] = collections.Counter()
    with tables.Writer(catalogue.with_name("renamed.arrow"), CATALOGUE) as writer:
        for table in tables.batches(catalogue):
            wnids = [class_of.get(label, label) for label in table["wnid"].to_pylist()]
            names = table["name"].to_pylist()
            names = [name.removeprefix(f"{wnid}/") for wnid, name in zip(wnids, names, strict=True)]
            counts.update(wnids)
            columns = {"wnid": pa.array(wnids, pa.string()), "name": pa.array(names, pa.string())}
            rest = {column: table[column] for column in CATALOGUE.names[2:]}
            writer.add(pa.table(columns | rest, schema=CATALOGUE))
    files.put_in_place(catalogue.with_name("renamed.arrow"), catalogue)
    return counts


def check_numbers(source: Source, classes: str, counts: dict[str, int]) -> None:
    """Raise UserError for names among class numbers, which would give the numbers other indices; warn of gaps."""
    if source.class_list or class_lists.listed(classes) is not None:
        return
    numbers = sorted(wnid for wnid in counts if wnid.isdecimal())
    odd = sorted(counts.keys() - set(numbers))
    if numbers and odd:
        raise UserError(
            f"INPUT has the label {odd[0]!r} ({counts[odd[0]]} images) among class numbers such as {int(numbers[0])}: "
            "remove these samples, or name all classes, in the order of their numbers, with --classes FILE"
        )
    if numbers and int(numbers[-1]) >= len(numbers):
        missing = next(number for number in range(len(numbers) + 1) if f"{number:05d}" not in counts)
        print(
            f"warning: no image of INPUT has class number {missing}, so greater numbers get smaller indices: to keep "
            "them, name all classes with --classes FILE",
            file=sys.stderr,
        )


def _scanned(output: Path, source: Source, options: PlanOptions) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(images, rejects) tables of the whole source."""
    parts = find_parts(source)
    if source.seekable:
        with Bar("scanning", len(parts), "parts") as bar:
            for found in workers.run(read_parts.scan_part, parts, options.workers):
                bar.advance()
                yield found
        return
    size = sum(item[1] for item in _fingerprint(source))
    with Bar("reading the stream", size, "bytes") as bar:
        rows: Iterator[Row] = (row for part in parts for row in read_parts.rows(part, bar.advance))
        if options.tasks == 1:
            rows = stream_buckets.lay_down(rows, files.fresh(stream_folder(output)), options.seed)
        batch: list[Row] = []
        for row in rows:
            batch.append(row._replace(data=b"") if isinstance(row, ImageRow) else row)
            if len(batch) >= STREAM_BATCH:
                yield read_parts.tables(batch)
                batch = []
        yield read_parts.tables(batch)
