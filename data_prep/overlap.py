"""``vit overlap DATASET --against OTHER``: find the images of one dataset that are also in another."""

import collections
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tyro
import xxhash

from data_prep import process_pool as workers
from data_prep import progress
from data_prep.dataset_reader import OpenTar, Piece, check_out, check_workers, pieces, rows_of
from data_prep.images import perceptual_hash
from data_prep.planning import assignment
from data_prep.sources import inputs
from pipeline.core import cli, errors, files, results
from pipeline.core.errors import UserError
from pipeline.core.needs import Need
from pipeline.dataset import format as dataset_format

DESCRIPTION = """Find the images of DATASET that are also in OTHER, such as test images in a training set. Identical
files are found by the hash of their bytes, near-duplicates (resized, recompressed) by a perceptual hash and confirmed
by comparing the images. File names are ignored: they prove nothing.

Writes a removal list for `vit shard --exclude`, one line per image: key, key in OTHER, exact or near, correlation.
If DATASET and OTHER are the same, finds duplicates within it and lists all but the first of each.

Examples:
  vit overlap data/imagenet21k --against data/imagenet1k-val
  vit overlap data/imagenet21k --against data/imagenet1k-val --distance 0 --out leaks.tsv
  vit shard fall11_whole.tar data/imagenet21k-clean --exclude leaks.tsv
"""
BLOCK = 4096  # images compared at a time


@dataclass(frozen=True)
class Options:
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset to clean."""
    against: Path
    """OTHER: the dataset whose images must not be in DATASET."""
    distance: int = 6
    """Near-duplicates' perceptual hashes may differ in at most this many of 64 bits, 0 to 7. -1: identical files
    only."""
    correlation: float = 0.95
    """Near-duplicates' thumbnails must correlate at least this much, above 0 to 1."""
    out: Path | None = None
    """File to write the removal list to. Default: DATASET-in-OTHER.tsv in the current folder."""
    workers: Annotated[int, tyro.conf.arg(help_behavior_hint="")] = len(os.sched_getaffinity(0))
    """Worker processes. Default: one per available CPU core."""
    json: str = ""
    """File to write the counts to as JSON; - for standard output, instead of the text."""


NEEDS = {
    "correlation": Need(
        lambda options: options.distance >= 0, "when only identical files are looked for", "give a --distance of 0 to 7"
    )
}


class Prints(NamedTuple):
    """The hashes of a dataset's images, in index order; ``perceptual`` is empty unless asked for."""

    exact: npt.NDArray[np.uint64]  # xxh3_64 of the bytes
    perceptual: npt.NDArray[np.uint64]


class Match(NamedTuple):
    """A row of DATASET that is also in OTHER."""

    row: int
    other_row: int
    kind: str  # "exact" or "near"
    correlation: float


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="vit overlap", description=DESCRIPTION, args=args, needs=NEEDS)
    workers.start_server()
    if not -1 <= options.distance <= 7:
        raise UserError(f"--distance {options.distance} must be from 0 to 7, or -1 for identical files only")
    if not 0 < options.correlation <= 1:
        raise UserError(f"--correlation {options.correlation} must be above 0 and at most 1")
    check_workers(options.workers)
    out = options.out or Path(f"{options.dataset.resolve().name}-in-{options.against.resolve().name}.tsv")
    check_out(out)
    own = pieces(options.dataset, dataset_format.read_info(options.dataset))
    other = pieces(options.against, dataset_format.read_info(options.against))
    itself = options.dataset.resolve() == options.against.resolve()
    other_prints = _prints(other, options, "reading OTHER")
    own_prints = other_prints if itself else _prints(own, options, "reading DATASET")
    matches = _exact(own_prints.exact, other_prints.exact, itself)
    if options.distance >= 0:
        matches |= _near(own, other, own_prints.perceptual, other_prints.perceptual, options, itself, set(matches))
    wnids = [] if inputs.is_ours(options.dataset) else dataset_format.read_classes(options.dataset)["wnid"].to_pylist()
    lines = list(_lines(own, other, [matches[row] for row in sorted(matches)], wnids))
    files.write_text(out, "# key\tkey in the other dataset\tkind\tcorrelation\n" + "".join(lines))
    kinds = collections.Counter(match.kind for match in matches.values())
    count = len(own_prints.exact)
    if options.json:
        facts = {"list": str(out), "images": count, "exact": kinds["exact"], "near": kinds["near"]}
        results.write(options.json, json.dumps(facts) + "\n")
    if options.json != results.STDOUT:
        print(f"{len(matches):,} of {count:,} images of {options.dataset} are in {options.against}: ", end="")
        print(f"{kinds['exact']:,} identical, {kinds['near']:,} near-duplicates; list: {out}")
        print(f"  to skip them: vit shard INPUT OUTPUT --exclude {out}")
    return errors.EXIT_DONE


def _prints(work: list[Piece], options: Options, what: str) -> Prints:
    total = sum(piece.info.samples for piece in work)
    items = [(piece, options.distance >= 0) for piece in work]
    with progress.counting(what, total, "images") as report:
        found = list(workers.run(prints_of, items, options.workers, report))
    return Prints(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def prints_of(item: tuple[Piece, bool]) -> Prints:
    """The hashes of one shard's images; hashes that the index lacks are computed."""
    piece, perceptual = item
    cv2.setNumThreads(1)
    rows = rows_of(piece, ["offset", "size", "xxh3_64"])
    exact = rows["xxh3_64"].to_numpy().copy()
    seen = np.zeros(len(rows) if perceptual else 0, np.uint64)
    with OpenTar(piece) as tar:
        for row, (offset, size) in enumerate(zip(rows["offset"].to_pylist(), rows["size"].to_pylist(), strict=True)):
            if perceptual or not exact[row]:
                data = tar.read(offset, size)
                exact[row] = exact[row] or xxhash.xxh3_64_intdigest(data)
            if perceptual:
                try:
                    seen[row] = perceptual_hash.of_thumbnail(perceptual_hash.thumbnail(data))
                except ValueError:
                    seen[row] = 0  # undecodable: matches nothing
            workers.report({"images": 1, "bytes": size})
    return Prints(exact, seen)


def _exact(own: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64], itself: bool) -> dict[int, Match]:
    """For each row of DATASET that has one, the first row of OTHER with the same bytes."""
    order = np.argsort(other, kind="stable")
    place = np.minimum(np.searchsorted(other[order], own), len(other) - 1)
    first = order[place]
    same = other[first] == own
    if itself:
        same &= first < np.arange(len(own))
    return {int(row): Match(int(row), int(first[row]), "exact", 1.0) for row in np.flatnonzero(same)}


def _near(
    own: list[Piece],
    other: list[Piece],
    own_hashes: npt.NDArray[np.uint64],
    other_hashes: npt.NDArray[np.uint64],
    options: Options,
    itself: bool,
    known: set[int],
) -> dict[int, Match]:
    """Candidates by perceptual hash, each confirmed by comparing the two thumbnails; the best match per row."""
    found: dict[int, Match] = {}
    mine, theirs = Thumbnails(own), Thumbnails(other)
    for start in range(0, len(own_hashes), BLOCK):
        queries, others = perceptual_hash.neighbours(own_hashes[start : start + BLOCK], other_hashes, options.distance)
        for row, other_row in zip((queries + start).tolist(), others.tolist(), strict=True):
            if row in known or (itself and other_row >= row):
                continue
            correlation = perceptual_hash.similarity(mine.thumbnail(row), theirs.thumbnail(other_row))
            if correlation >= max(options.correlation, found[row].correlation if row in found else 0):
                found[row] = Match(row, other_row, "near", correlation)
    return found


class Thumbnails:
    """Thumbnails by index row; the latest are kept in memory."""

    def __init__(self, work: list[Piece]) -> None:
        self._pieces = work
        self._starts = np.array([piece.first_row for piece in work])
        self._rows: tuple[int, pa.Table] = (-1, None)
        self._kept: collections.OrderedDict[int, npt.NDArray[np.float32]] = collections.OrderedDict()

    def thumbnail(self, row: int) -> npt.NDArray[np.float32]:
        if row not in self._kept:
            number = int(np.searchsorted(self._starts, row, "right")) - 1
            piece = self._pieces[number]
            if self._rows[0] != number:
                self._rows = number, rows_of(piece, ["offset", "size"])
            place = self._rows[1].slice(row - piece.first_row, 1).to_pylist()[0]
            with OpenTar(piece) as tar:
                self._kept[row] = perceptual_hash.thumbnail(tar.read(place["offset"], place["size"]))
            if len(self._kept) > BLOCK:
                self._kept.popitem(last=False)
        return self._kept[row]


def _lines(own: list[Piece], other: list[Piece], matches: list[Match], wnids: list[str]) -> Iterator[str]:
    """The lines of the removal list.

    ``wnids``: class list of a dataset that vit index made; its keys are written as vit shard would write them.
    """
    keys = _keys(own, {match.row for match in matches}, wnids)
    other_keys = _keys(other, {match.other_row for match in matches})
    for match in matches:
        yield f"{keys[match.row]}\t{other_keys[match.other_row]}\t{match.kind}\t{match.correlation:.3f}\n"


def _keys(work: list[Piece], rows: set[int], wnids: Sequence[str] = ()) -> dict[int, str]:
    found: dict[int, str] = {}
    for piece in work:
        here = sorted(row for row in rows if piece.first_row <= row < piece.first_row + piece.info.samples)
        if here:
            table = rows_of(piece, ["key", "label"]).take([row - piece.first_row for row in here])
            keys = table["key"].to_pylist()
            if wnids:
                labels = table["label"].to_pylist()
                keys = [assignment.key_of(wnids[label], f"{key}.jpg") for key, label in zip(keys, labels, strict=True)]
            found.update(zip(here, keys, strict=True))
    return found


if __name__ == "__main__":
    cli.run(main)
