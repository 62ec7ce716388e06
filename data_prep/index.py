"""``vit index FOLDER``: make a dataset of existing WebDataset tars, without moving them.

Reads tar headers and ``.cls`` members only, so a terabyte takes minutes. What headers don't say stays empty: widths,
heights and hashes are 0. The dataset's digest covers the rows (keys, offsets, sizes and labels), so that two versions
of the same tars differ.
"""

import collections
import importlib
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
from data_prep.dataset_reader import check_workers, skipped_lines
from data_prep.sources import inputs
from data_prep.sources.class_orders import NamedNumbers, order_of
from data_prep.sources.rows import OTHER_FILE, RejectRow
from data_prep.sources.sample_headers import INDEX_ROWS, NOT_JPEG, Tar, index_tar
from data_prep.sources.sample_tars import UNLABELLED, Label, all_unlabelled, is_number, read_label
from data_prep.sources.splits import split_of
from data_prep.writing import finalize
from pipeline.core import cli, errors, files
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.core.progress import Bar
from pipeline.dataset import class_lists, hub_dataset
from pipeline.dataset.format import INDEX_SCHEMA, REJECTS_SCHEMA, ShardInfo

DESCRIPTION = """Index the WebDataset tars in FOLDER by reading their headers, so that the pipeline can train on them.
Writes index.parquet, classes.parquet, rejects.parquet and dataset.json beside the tars, which stay unchanged.

FOLDER may be on the Hugging Face Hub, hf://datasets/OWNER/NAME[@REVISION][/FOLDER]: the headers are read by requests
for ranges, the tars are not downloaded, and the index is kept in VIT_CACHE for this commit. Train with the same URL.

Each sample needs a JPEG (.jpg or .jpeg) and a .cls member with a class number or class name; samples of class -1, which
marks images without a class, are skipped. The split is taken from the tar's name: val or test if the name contains that
word, otherwise train.

Examples:
  vit index data/imagenet1k-wds --classes imagenet1k
  vit index data/shards --classes wnids.txt --split train
  vit index data/shards --force     # again, after tars were added
  vit index hf://datasets/timm/imagenet-12k-wds
"""
HUB_WORKERS = 16  # processes that wait for the Hub most of the time
LARGEST_CLASS = 10_000_000  # a larger number is an id rather than a class, and the class list would fill the memory


@dataclass(frozen=True)
class Options:
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder with the tars, or hf://datasets/OWNER/NAME[@REVISION][/FOLDER]."""
    classes: str = "derive"
    """Class list: fall11, google21k, imagenet12k, imagenet1k, or a file with one wnid per line. If the images are
    called by wnid (n01440764_10026), the names tell what the class numbers mean; otherwise the numbers refer to this
    list. derive: the recognized order, or else the numbers or names themselves. numbers: the numbers in any case."""
    split: str = "auto"
    """Split of all tars. auto: taken from each tar's name."""
    label: str = ""
    """The member that holds a sample's class: cls (used if this is empty), txt, any other ending, or json:KEY."""
    name: str = ""
    """Name of the dataset. If empty: the folder's name."""
    workers: int | None = None
    """Worker processes. Default: one per available CPU core, or 16 for tars on the Hub."""
    force: bool = False
    """Replace an existing index that this command made."""


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="vit index", description=DESCRIPTION, args=args)
    location = Location.of(options.folder)
    preloaded = ("huggingface_hub.file_download",) if location.on_hub else ()
    workers.start_server("data_prep.sources.sample_headers", *preloaded)
    importlib.import_module(workers.BUILDS_TABLES)  # for this process, while the server starts
    default = HUB_WORKERS if location.on_hub else len(os.sched_getaffinity(0))
    count = default if options.workers is None else options.workers
    check_workers(count)
    if not options.split.isidentifier():
        raise UserError(f"--split {options.split!r} must be a plain word, such as train")
    label = read_label(options.label)
    tars = _tars(location, force=options.force)
    listed = None if options.classes in ("derive", "numbers") else class_lists.listed(options.classes)
    if listed is None and options.classes not in ("derive", "numbers"):
        raise UserError(f"--classes {options.classes} is not a fixed list: give derive, the name of a list, or a file")
    splits = {name: split_of(name) if options.split == "auto" else options.split for name in tars}
    counts: collections.Counter[str] = collections.Counter()
    items: list[Tar] = []
    for split, name in sorted((split, name) for name, split in splits.items()):
        items.append(Tar(f"{location.tars}/{name}", tars[name], split, counts[split], label))
        counts[split] += 1
    location.output.mkdir(parents=True, exist_ok=True)
    rows = files.temporary(location.output / "index.arrow")
    rejects: list[RejectRow] = []
    made: list[ShardInfo] = []
    seen: set[str] = set()
    named = NamedNumbers()
    try:
        with arrow_tables.Writer(rows, INDEX_ROWS) as writer, Bar("indexing", len(items), "tars") as bar:
            found = workers.run(index_tar, items, min(count, len(items)))
            for tar, (table, left_out) in zip(items, found, strict=True):
                bar.advance()
                made.append(ShardInfo(tar.split, tar.shard, len(table), tar.size, "", tar.name))
                writer.add(table)
                seen.update(pc.unique(table["class"]).to_pylist())
                named.add(table["class"], table["key"])
                rejects += left_out
        if not writer.rows:
            raise _no_samples(options.folder, rejects, label)
        wnids, label_of = _classes(seen, named, listed, options.classes)
        texts, labels = pa.array(list(label_of)), pa.array(list(label_of.values()), pa.int32())
        content = Content()
        tables = content.seen(_labelled(table, texts, labels) for table in arrow_tables.batches(rows))
        arrow_tables.write_parquet(location.output / "index.parquet", INDEX_SCHEMA, tables)
    finally:
        rows.unlink(missing_ok=True)
    reject_table = arrow_tables.table(rejects, REJECTS_SCHEMA)
    arrow_tables.write_parquet(location.output / "rejects.parquet", REJECTS_SCHEMA, [reject_table])
    info = finalize.describe(
        location.output,
        name=options.name or location.name,
        seed=0,
        options={
            "made_by": "data_prep.index",
            "classes": options.classes,
            "rows": content.digest(),
            **({"tars": location.tars} if location.on_hub else {}),
        },
        classes=finalize.classes_table(wnids, [class_lists.name_of(wnid) for wnid in wnids]),
        made=made,
        rejects=len(rejects),
    )
    samples = ", ".join(f"{count:,} {split}" for split, count in info.samples.items())
    made_of = f"{samples} images of {info.classes:,} classes in {len(made):,} tars"
    print(f"{location.tars}: {made_of}, {len(rejects):,} skipped")
    reasons = collections.Counter(reject.reason for reject in rejects)
    others = [reject.source for reject in rejects if reject.reason == OTHER_FILE]
    for line in skipped_lines(reasons, others, location.output):
        print(line)
    if location.on_hub:
        print(f"index: {location.output}")
    return errors.EXIT_DONE


@dataclass(frozen=True)
class Location:
    """Where the tars are, and where their index goes."""

    tars: str  # folder, or pinned URL on the Hub
    output: Path
    name: str  # of the dataset

    @property
    def on_hub(self) -> bool:
        return hub_dataset.is_hub(self.tars)

    @staticmethod
    def of(given: str) -> "Location":
        """Raises UserError if ``given`` is neither a folder nor a dataset on the Hub."""
        if hub_dataset.is_hub(given):
            pinned = hub_dataset.pinned(given)
            return Location(pinned, hub_dataset.index_folder(pinned), hub_dataset.parse(pinned).repo.partition("/")[2])
        folder = Path(given)
        check_local(folder, "FOLDER")
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise UserError(f"FOLDER {given!r} {what}: give the folder with the tars")
        return Location(str(folder), folder, folder.resolve().name)


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


def _tars(location: Location, *, force: bool) -> dict[str, int]:
    """The size of each tar by its name. Raises UserError if there are none, or if an index would be replaced."""
    output, given = location.output, location.tars
    if (output / ".work").exists():
        raise UserError(f"FOLDER {given!r} is an unfinished dataset of vit shard: finish it with that")
    if (output / "dataset.json").exists():
        if not force:
            where = f" in {str(output)!r}" if location.on_hub else ""
            raise UserError(f"FOLDER {given!r} already has a dataset.json{where}: --force replaces the index")
        if inputs.is_ours(output):
            raise UserError(
                f"FOLDER {given!r} was made by vit shard, whose index has more than a new one would: to "
                "replace it all the same, move its dataset.json away first"
            )
    if location.on_hub:
        every = hub_dataset.files(given)
        tars = {name: size for name, size in every.items() if name.endswith(".tar") and "/" not in name}
        if not tars:
            folders = sorted({name.rpartition("/")[0] for name in every if name.endswith(".tar")})
            where = f"they are in {', '.join(folders[:5])}: add the folder to the URL" if folders else "see its page"
            raise UserError(f"FOLDER {given!r} contains no .tar files: {where}")
        return tars
    paths = sorted(path for path in output.glob("*.tar") if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise UserError(f"FOLDER {given!r} contains no .tar files: give the folder with the tars")
    return {path.name: path.stat().st_size for path in paths}


def _no_samples(folder: str, rejects: list[RejectRow], label: Label) -> UserError:
    """The error for tars of which no sample can be used."""
    reasons = collections.Counter(reject.reason for reject in rejects)
    if reasons[UNLABELLED]:
        return all_unlabelled(f"FOLDER {folder!r}", reasons[UNLABELLED])
    if reasons[NOT_JPEG]:
        first = next(reject for reject in rejects if reject.reason == NOT_JPEG)
        return UserError(
            f"FOLDER {folder!r}: the images of all {reasons[NOT_JPEG]:,} labelled samples have another "
            f"ending than .jpg and .jpeg ({first.source} is {first.detail.split()[0]}), and training reads JPEG "
            f"alone: write JPEGs of them with 'vit shard {folder} OUTPUT'"
        )
    return UserError(
        f"FOLDER {folder!r}: no tar has a sample with a JPEG and a .{label.ending} "
        "member: if another member holds the class, name it with --label"
    )


def _classes(
    seen: set[str], named: NamedNumbers, listed: list[str] | None, choice: str
) -> tuple[list[str], dict[str, int]]:
    """The class list, and the class index that each text of a .cls member means. Raises UserError for unknown ones.

    ``named``: the images' names by their text. ``listed``: the list of --classes.
    """
    numbers = {text for text in seen if text.isdecimal()}
    odd = sorted(text for text in seen if not text.isdecimal() and (numbers or is_number(text)))
    if odd and not (listed and seen <= set(listed)):
        raise UserError(
            f"a sample has label {odd[0]!r}, which is not a class number (0, 1, 2, ...) as others are: move its tar "
            "away, or list all classes with --classes FILE"
        )
    largest = max((int(text) for text in numbers), default=0)
    if len(numbers) == len(seen) and largest > LARGEST_CLASS:
        raise UserError(
            f"a .cls member gives class number {largest}, which is too large for one: if another "
            "member holds the class, name it with --label"
        )
    order, class_of = (None, dict[str, str]()) if choice == "numbers" else order_of(seen, named, listed)
    if len(numbers) == len(seen) and order is None:
        return [f"{number:05d}" for number in range(largest + 1)], {text: int(text) for text in seen}
    classes = {text: class_of.get(text, text) for text in seen}
    wnids = listed or list(order or sorted(seen))
    index = {wnid: number for number, wnid in enumerate(wnids)}
    unknown = sorted(set(classes.values()) - index.keys())
    if unknown:
        raise UserError(f"--classes {choice} lacks the class {unknown[0]!r} of the tars: give a list that has it")
    return wnids, {text: index[wnid] for text, wnid in classes.items()}


def _labelled(table: pa.Table, texts: pa.Array, labels: pa.Array) -> pa.Table:
    """``table`` as INDEX_SCHEMA: each row's label is the one of ``labels`` at its class's position in ``texts``."""
    label = labels.take(pc.index_in(table["class"], texts))
    return table.drop_columns("class").set_column(INDEX_SCHEMA.get_field_index("label"), "label", label)


if __name__ == "__main__":
    cli.run(main)
