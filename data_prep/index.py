"""``vit index FOLDER``: make a dataset of existing WebDataset tars, without moving them.

Reads tar headers and ``.cls`` members only, so a terabyte takes minutes. What headers don't say stays empty: widths,
heights and hashes are 0. The dataset's digest covers the rows (keys, offsets, sizes and labels), so that two versions
of the same tars differ.
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

DESCRIPTION = """Index the WebDataset tars in FOLDER by reading their headers, so that the pipeline can train on them.
Writes index.parquet, classes.parquet, rejects.parquet and dataset.json beside the tars, which stay unchanged.

Each sample needs a JPEG (.jpg or .jpeg) and a .cls member with a class number or class name. The split is taken from
the tar's name: val or test if the name contains that word, otherwise train.

Examples:
  vit index data/imagenet1k-wds --classes imagenet1k
  vit index data/shards --classes wnids.txt --split train
  vit index data/shards --force     # again, after tars were added
"""
LARGEST_CLASS = 10_000_000  # a larger number is an id rather than a class, and the class list would fill the memory


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with the tars."""
    classes: str = "derive"
    """Class list that the class numbers refer to: fall11, google21k, imagenet1k, or a file with one wnid per line.
    derive: the numbers or names themselves are the classes."""
    split: str = "auto"
    """Split of all tars. auto: taken from each tar's name."""
    label: str = ""
    """The member that holds a sample's class: cls (used if this is empty), txt, any other ending, or json:KEY."""
    name: str = ""
    """Name of the dataset. If empty: the folder's name."""
    workers: int = len(os.sched_getaffinity(0))
    """Worker processes. Default: one per available CPU core."""
    force: bool = False
    """Replace an existing index that this command made."""


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="vit index", description=DESCRIPTION, args=args)
    workers.start_server("data_prep.sources.sample_headers", workers.BUILDS_TABLES)
    check_workers(options.workers)
    if not options.split.isidentifier():
        raise UserError(f"--split {options.split!r} must be a plain word, such as train")
    label = read_label(options.label)
    tars = _tars(options)
    listed = None if options.classes == "derive" else class_lists.listed(options.classes)
    if listed is None and options.classes != "derive":
        raise UserError(f"--classes {options.classes} is not a fixed list: give derive, the name of a list, or a file")
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
                "member: if another member holds the class, name it with --label"
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
    print(f"{options.folder}: {made_of}, {len(rejects):,} skipped")
    return errors.EXIT_DONE


class Content:
    """A hash of the index's rows. Shards have no hashes here, so this one distinguishes versions of a dataset."""

    COLUMNS = ("offset", "size", "label")

    def __init__(self) -> None:
        # one hash per column: the result does not depend on how the rows are divided into tables
        self._hashes = {name: xxhash.xxh3_128() for name in ("key", *self.COLUMNS)}

    def seen(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables unchanged, after hashing them."""
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
        raise UserError(f"FOLDER {str(options.folder)!r} {what}: give the folder with the tars")
    if (options.folder / ".work").exists():
        raise UserError(f"FOLDER {str(options.folder)!r} is an unfinished dataset of vit shard: finish it with that")
    if (options.folder / "dataset.json").exists():
        if not options.force:
            raise UserError(f"FOLDER {str(options.folder)!r} already has a dataset.json: --force replaces the index")
        if inputs.is_ours(options.folder):
            raise UserError(
                f"FOLDER {str(options.folder)!r} was made by vit shard, whose index has more than a new one would: to "
                "replace it all the same, move its dataset.json away first"
            )
    tars = sorted(path for path in options.folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))
    if not tars:
        raise UserError(f"FOLDER {str(options.folder)!r} contains no .tar files: give the folder with the tars")
    return tars


def _classes(seen: set[str], listed: list[str] | None, choice: str) -> tuple[list[str], dict[str, int]]:
    """The class list, and the class index that each text of a .cls member means. Raises UserError for unknown ones."""
    numbers = {text for text in seen if text.isdecimal()}
    odd = sorted(text for text in seen if not text.isdecimal() and (numbers or is_number(text)))
    if odd and not (listed and seen <= set(listed)):
        raise UserError(
            f"a sample has label {odd[0]!r}, which is not a class number (0, 1, 2, ...) as others are: move its tar "
            "away (-1 marks images without a label), or list all classes with --classes FILE"
        )
    if len(numbers) == len(seen):
        largest = max(int(text) for text in seen)
        if largest > LARGEST_CLASS:
            raise UserError(
                f"a .cls member gives class number {largest}, which is too large for one: if another "
                "member holds the class, name it with --label"
            )
        if listed is not None and largest >= len(listed):
            raise UserError(
                f"--classes {choice} has {len(listed)} classes, but a .cls member says {largest}: give the list "
                "that the tars were made with"
            )
        wnids = listed or [f"{number:05d}" for number in range(largest + 1)]
        return wnids, {text: int(text) for text in seen}
    wnids = listed or sorted(seen)
    index = {wnid: number for number, wnid in enumerate(wnids)}
    unknown = sorted(seen - index.keys())
    if unknown:
        raise UserError(f"--classes {choice} lacks the class {unknown[0]!r} of a .cls member: give a list that has it")
    return wnids, index


def _labelled(table: pa.Table, texts: pa.Array, labels: pa.Array) -> pa.Table:
    """``table`` as INDEX_SCHEMA: each row's label is the one of ``labels`` at its class's position in ``texts``."""
    label = labels.take(pc.index_in(table["class"], texts))
    return table.drop_columns("class").set_column(INDEX_SCHEMA.get_field_index("label"), "label", label)


if __name__ == "__main__":
    cli.run(main)
