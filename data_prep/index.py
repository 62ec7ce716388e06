"""``python -m data_prep.index FOLDER``: make WebDataset tars that somebody else wrote a data set, where they lie.

Reads tar headers and ``.cls`` members only, so a terabyte takes minutes. What can't be known from headers stays empty:
widths, heights and hashes are 0. Two versions of the same tars are told apart by their rows: keys, places, sizes and
labels.
"""

import collections
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import tyro
import xxhash

from data_prep import process_pool as workers
from data_prep import tables as arrow_tables
from data_prep.dataset_reader import check_workers
from data_prep.sources import inputs
from data_prep.sources.rows import RejectRow
from data_prep.sources.sample_headers import INDEX_ROWS, Tar, index_tar
from data_prep.sources.sample_tars import is_number, read_label
from data_prep.sources.splits import split_of
from data_prep.writing import finalize
from pipeline.core import cli, errors, files
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.core.progress import Bar
from pipeline.dataset import class_lists
from pipeline.dataset.format import INDEX_SCHEMA, REJECTS_SCHEMA, ShardInfo

DESCRIPTION = """Index the WebDataset tars in FOLDER, by their headers alone, so that the pipeline can train on them.
Writes index.parquet, classes.parquet, rejects.parquet and dataset.json beside the tars, which stay as they are.

Each sample needs a JPEG (.jpg or .jpeg) and a .cls member: a class number, or a class name. Splits are told by the
tars' names (val and test in them; all others are train).

Examples:
  python -m data_prep.index data/imagenet1k-wds --classes imagenet1k
  python -m data_prep.index data/shards --classes wnids.txt --split train
  python -m data_prep.index data/shards --force     # again, after tars were added
"""
LARGEST_CLASS = 10_000_000  # a number above it is no class but an id, and the class list would fill the memory


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder that holds the tars."""
    classes: str = "derive"
    """The class list that the numbers mean: fall11, google21k, imagenet1k, or a file with a wnid a line. derive: the
    numbers or names themselves."""
    split: str = "auto"
    """Split of all tars; auto goes by their names."""
    label: str = ""
    """The member that holds a sample's class: cls (the default), txt, any other ending, or json:KEY."""
    name: str = ""
    """Name of the data set; the folder's where empty."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes."""
    force: bool = False
    """Replace an index of this command's that is there."""


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="python -m data_prep.index", description=DESCRIPTION, args=args)
    workers.start_server("data_prep.sources.sample_headers", workers.BUILDS_TABLES)
    check_workers(options.workers)
    if not options.split.isidentifier():
        raise UserError(f"--split {options.split!r} must be a plain word, such as train")
    label = read_label(options.label)
    tars = _tars(options)
    listed = None if options.classes == "derive" else class_lists.listed(options.classes)
    if listed is None and options.classes != "derive":
        raise UserError(f"--classes {options.classes} isn't a fixed list: give derive, a list's name or a file")
    names = [path.name for path in tars]
    splits = [split_of(name) if options.split == "auto" else options.split for name in names]
    counts: collections.Counter[str] = collections.Counter()
    items: list[Tar] = []
    for split, path in sorted(zip(splits, tars, strict=True), key=lambda item: (item[0], item[1].name)):
        items.append(Tar(path, split, counts[split], label))
        counts[split] += 1
    rows = files.temporary(options.folder / "index.arrow")
    rejects: list[RejectRow] = []
    made: list[ShardInfo] = []
    seen: set[str] = set()
    try:
        with arrow_tables.Writer(rows, INDEX_ROWS) as writer, Bar("indexing", len(items), "tars") as bar:
            found = workers.run(index_tar, items, min(options.workers, len(items)))
            for tar, (table, left_out) in zip(items, found, strict=True):
                bar.advance()
                size = tar.path.stat().st_size
                made.append(ShardInfo(tar.split, tar.shard, len(table), size, "", tar.path.name))
                writer.add(table)
                seen.update(pc.unique(table["class"]).to_pylist())
                rejects += left_out
        if not writer.rows:
            raise UserError(
                f"FOLDER {str(options.folder)!r}: no tar has a sample with a JPEG and a .{label.ending} "
                "member: if another member holds the class, name it by --label"
            )
        wnids, label_of = _classes(seen, listed, options.classes)
        texts, labels = pa.array(list(label_of)), pa.array(list(label_of.values()), pa.int32())
        content = Content()
        tables = content.seen(_labelled(table, texts, labels) for table in arrow_tables.batches(rows))
        arrow_tables.write_parquet(options.folder / "index.parquet", INDEX_SCHEMA, tables)
    finally:
        rows.unlink(missing_ok=True)
    reject_table = arrow_tables.table(rejects, REJECTS_SCHEMA)
    arrow_tables.write_parquet(options.folder / "rejects.parquet", REJECTS_SCHEMA, [reject_table])
    info = finalize.describe(
        options.folder,
        name=options.name or options.folder.resolve().name,
        seed=0,
        options={"made_by": "data_prep.index", "classes": options.classes, "rows": content.digest()},
        classes=finalize.classes_table(wnids, [class_lists.name_of(wnid) for wnid in wnids]),
        made=made,
        rejects=len(rejects),
    )
    samples = ", ".join(f"{count:,} {split}" for split, count in info.samples.items())
    made_of = f"{samples} images of {info.classes:,} classes in {len(made):,} tars"
    print(f"{options.folder}: {made_of}, {len(rejects):,} left out")
    return errors.EXIT_DONE


class Content:
    """A hash of the index's rows. Shards have none here, so it is what tells two versions of a data set apart."""

    COLUMNS = ("offset", "size", "label")

    def __init__(self) -> None:
        # one a column: the same whatever tables the rows come in
        self._hashes = {name: xxhash.xxh3_128() for name in ("key", *self.COLUMNS)}

    def seen(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables, unchanged, on their way."""
        for table in tables:
            keys = "".join(f"{len(key)} {key}" for key in table["key"].to_pylist())
            self._hashes["key"].update(keys.encode())
            for name in self.COLUMNS:
                self._hashes[name].update(table[name].to_numpy().astype("<i8").tobytes())
            yield table

    def digest(self) -> str:
        return xxhash.xxh3_128_hexdigest(b"".join(found.digest() for found in self._hashes.values()))


def _tars(options: Options) -> list[Path]:
    check_local(options.folder, "FOLDER")
    if not options.folder.is_dir():
        what = "is a file" if options.folder.exists() else "does not exist"
        raise UserError(f"FOLDER {str(options.folder)!r} {what}: give the folder that holds the tars")
    if (options.folder / ".work").exists():
        raise UserError(f"FOLDER {str(options.folder)!r} is being made by data_prep.shard: run that to its end")
    if (options.folder / "dataset.json").exists():
        if not options.force:
            raise UserError(f"FOLDER {str(options.folder)!r} has a dataset.json already: --force makes a new index")
        if inputs.is_ours(options.folder):
            raise UserError(
                f"FOLDER {str(options.folder)!r} was made by data_prep.shard, whose index says more than a new one "
                "would: move its dataset.json away first"
            )
    tars = sorted(path for path in options.folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))
    if not tars:
        raise UserError(f"FOLDER {str(options.folder)!r} holds no .tar files")
    return tars


def _classes(seen: set[str], listed: list[str] | None, choice: str) -> tuple[list[str], dict[str, int]]:
    """The class list, and the index that each text of a .cls member means. Raises UserError where one means none."""
    numbers = {text for text in seen if text.isdecimal()}
    odd = sorted(text for text in seen if not text.isdecimal() and (numbers or is_number(text)))
    if odd and not (listed and seen <= set(listed)):
        raise UserError(
            f"a sample has label {odd[0]!r}, which is no class number (0, 1, 2, ...) as others are: take its tar out "
            "out (-1 marks images without a label), or list all classes by --classes FILE"
        )
    if len(numbers) == len(seen):
        largest = max(int(text) for text in seen)
        if largest > LARGEST_CLASS:
            raise UserError(f"a .cls member gives the class number {largest}: classes are numbered from 0")
        if listed is not None and largest >= len(listed):
            raise UserError(f"--classes {choice} has {len(listed)} classes, but a .cls member says {largest}")
        wnids = listed or [f"{number:05d}" for number in range(largest + 1)]
        return wnids, {text: int(text) for text in seen}
    wnids = listed or sorted(seen)
    index = {wnid: number for number, wnid in enumerate(wnids)}
    unknown = sorted(seen - index.keys())
    if unknown:
        raise UserError(f"--classes {choice} lacks the class {unknown[0]!r} of a .cls member")
    return wnids, index


def _labelled(table: pa.Table, texts: pa.Array, labels: pa.Array) -> pa.Table:
    """INDEX_SCHEMA: each row with the one of ``labels`` that belongs to its class among ``texts``."""
    label = labels.take(pc.index_in(table["class"], texts))
    return table.drop_columns("class").set_column(INDEX_SCHEMA.get_field_index("label"), "label", label)


if __name__ == "__main__":
    cli.run(main)
