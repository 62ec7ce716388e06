"""``vit verify DATASET``: check a finished dataset against its hashes, and whether its order is random."""

import json
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
import xxhash

from data_prep import process_pool as workers
from data_prep import progress
from data_prep.dataset_reader import OpenTar, Piece, batches, check_workers, pieces, rows_of
from data_prep.sources.tar_headers import DamagedTarError, scan
from pipeline.core import cli, errors, results, retry
from pipeline.core.files import xxh3_128
from pipeline.dataset import format as dataset_format
from pipeline.dataset.format import DatasetInfo, read_classes
from pipeline.imaging import jpeg

DESCRIPTION = """Check a finished dataset: the hash of every tar and every image, tar headers and .cls members against
the index, and all counts. Decode every image, report the balance of the classes, and test whether the order is random.

Exit code 0: no findings. 1: findings, one line each.

Examples:
  vit verify data/imagenet21k
  vit verify data/imagenet21k --no-decode --workers 32   # hashes only, at disk speed
  vit verify data/imagenet21k --json - | jq .findings
"""
EXIT_DAMAGED = 1
MOST_FINDINGS = 20  # listed per shard
LEAST_Z = 5.0  # standard deviations: a random order exceeds this once in two million datasets


@dataclass(frozen=True)
class Options:
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder of a finished dataset."""
    decode: bool = True
    """Decode every image. --no-decode checks hashes and headers only, at disk speed."""
    workers: Annotated[int, tyro.conf.arg(help_behavior_hint="")] = len(os.sched_getaffinity(0))
    """Worker processes. Default: one per available CPU core."""
    json: str = ""
    """File to write the findings to as JSON; - for standard output, instead of the text."""


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="vit verify", description=DESCRIPTION, args=args)
    workers.start_server()
    check_workers(options.workers)
    info = dataset_format.read_info(options.dataset)
    findings = check_counts(options.dataset, info)
    order: dict[str, float] = {}
    balance: dict[str, int] = {}
    reached = not findings
    if reached:  # otherwise the index can't be relied on
        work = [(piece, options.decode) for piece in pieces(options.dataset, info)]
        with progress.counting("verifying", sum(info.samples.values()), "images") as report:
            for found in workers.run(check_shard, work, options.workers, report):
                findings += found
        findings += check_labels(options.dataset, info)
        order = {split: order_statistic(options.dataset, split) for split in info.samples}
        findings += [
            f"split {split}: the order is not random: the number of neighbours of the same class is {z:+.1f} standard "
            "deviations from chance"
            for split, z in order.items()
            if abs(z) > LEAST_Z
        ]
        balance = class_balance(options.dataset)
    if options.json:
        facts = {"dataset": str(options.dataset), "findings": findings, "order_z": order, **balance}
        results.write(options.json, json.dumps(facts) + "\n")
    if options.json != results.STDOUT:
        for finding in findings:
            print(f"finding: {finding}")
        images = ", ".join(f"{count:,} {split}" for split, count in info.samples.items())
        checked = "hashes, tar members, class members" + (", decoded images" if options.decode else "")
        if not reached:
            checked = "counts only: the images are checked once these are mended"
        print(f"{options.dataset}: {len(findings)} findings in {images} images ({checked})")
        if balance:
            print(
                f"  images per class: {balance['smallest_class']} to {balance['largest_class']}, "
                f"{balance['empty_classes']} classes without images; "
                f"shuffle check: z = {', '.join(f'{split} {z:+.1f}' for split, z in order.items())} "
                f"(random order is within ±{LEAST_Z:.0f})"
            )
    return EXIT_DAMAGED if findings else errors.EXIT_DONE


def check_counts(folder: Path, info: DatasetInfo) -> list[str]:
    """Compare the files and their numbers of rows with dataset.json; the findings."""
    findings: list[str] = []
    for name, count in (
        ("index.parquet", sum(info.samples.values())),
        ("classes.parquet", info.classes),
        ("rejects.parquet", info.rejects),
    ):
        if not (folder / name).is_file():
            findings.append(f"{name} is missing")
            continue
        try:
            metadata = pq.read_metadata(folder / name)
        except (pa.ArrowInvalid, OSError) as error:
            findings.append(f"{name} can't be read ({error})")
            continue
        if metadata.num_rows != count:
            findings.append(f"{name} has {metadata.num_rows} rows, dataset.json says {count}")
        if lacking := dataset_format.lacking_columns(folder / name, metadata.schema.names):
            findings.append(f"{name} lacks the columns {lacking}")
    if not findings and dataset_format.classes_digest(read_classes(folder)["wnid"].to_pylist()) != info.classes_digest:
        findings.append("classes.parquet does not match dataset.json's class digest: other classes or another order")
    known = {shard.file_name for shard in info.shards}
    findings += [
        f"{tar.name} does not belong to this dataset" for tar in sorted(folder.glob("*.tar")) if tar.name not in known
    ]
    return findings


def check_shard(work: tuple[Piece, bool]) -> list[str]:
    """The findings of one shard: at most MOST_FINDINGS lines and a count of the others."""
    piece, decode = work
    try:
        return _findings(piece, decode)
    except (retry.UnreadableError, OSError) as error:
        return [f"{piece.info.file_name}: {error}"]


def _findings(piece: Piece, decode: bool) -> list[str]:
    name = piece.info.file_name
    if not piece.tar.is_file():
        return [f"{name} is missing"]
    if piece.tar.stat().st_size != piece.info.bytes:
        return [f"{name} has {piece.tar.stat().st_size} bytes, dataset.json says {piece.info.bytes}"]
    findings = []
    if piece.info.xxh3_128 and xxh3_128(piece.tar) != piece.info.xxh3_128:
        findings.append(f"{name}: its hash differs from dataset.json's")
    with OpenTar(piece) as tar:
        try:
            found = scan(tar.read, 0, piece.info.bytes, tar.fd)
            members = {member.offset: member._replace(name=errors.printable(member.name)) for member in found}
        except DamagedTarError as error:
            return [*findings, f"{name} is damaged, {error}"]
        by_name = {member.name: member for member in members.values()}
        rows = rows_of(piece).to_pylist()
        for row in rows:
            problem = _check_row(row, tar, members, by_name, decode)
            if problem:
                findings.append(f"{name}: {row['key']}: {problem}")
            workers.report({"images": 1, "bytes": row["size"]})
    more = len(findings) - MOST_FINDINGS
    return findings[:MOST_FINDINGS] + ([f"{name}: {more} more findings"] if more > 0 else [])


def _check_row(
    row: dict[str, Any], tar: OpenTar, members: dict[int, Any], by_name: dict[str, Any], decode: bool
) -> str:
    member = members.get(row["offset"])
    if member is None or not member.name.startswith(f"{row['key']}.") or member.size != row["size"]:
        return "the tar has no such member at the index's offset"
    label = by_name.get(f"{row['key']}.cls")
    said = (label.head or tar.read(label.offset, label.size)) if label else b"nothing"
    text = said.decode("ascii", "replace").strip()
    if text != str(row["label"]) and _class_meant(text, tar.folder) != row["label"]:
        return f"its .cls member says {text}, the index says {row['label']}"
    data = tar.read(row["offset"], row["size"])
    if row["xxh3_64"] and xxhash.xxh3_64_intdigest(data) != row["xxh3_64"]:
        return "its bytes have changed since they were written (hash differs)"
    if decode:
        if defect := jpeg.defect(data):
            return f"it can't be decoded ({defect})"
        height, width = jpeg.size(data)
        if row["width"] and (width, height) != (row["width"], row["height"]):
            return f"it has {width} x {height} pixels, the index says {row['width']} x {row['height']}"
    return ""


def _class_meant(text: str, folder: Path) -> int | None:
    """The index of the class that a foreign .cls member names: 007, or n01440764."""
    return int(text) if text.isdecimal() else _indices(folder).get(text)


@cache
def _indices(folder: Path) -> dict[str, int]:
    return {wnid: index for index, wnid in enumerate(read_classes(folder)["wnid"].to_pylist())}


def check_labels(folder: Path, info: DatasetInfo) -> list[str]:
    """A finding if the index has labels outside the class list."""
    wrong = sum(
        int(((t := b["label"].to_numpy()) < 0).sum() + (t >= info.classes).sum()) for b in batches(folder, ["label"])
    )
    return [f"index.parquet has {wrong} labels outside 0 to {info.classes - 1}"] if wrong else []


def class_balance(folder: Path) -> dict[str, int]:
    """Images of the smallest and the largest nonempty class, and the number of empty classes."""
    classes = pq.read_metadata(folder / "classes.parquet").num_rows
    counts = np.zeros(classes, np.int64)
    for batch in batches(folder, ["label"]):
        labels = batch["label"].to_numpy()
        counts += np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
    some = counts[counts > 0]
    smallest, largest = (int(some.min()), int(some.max())) if len(some) else (0, 0)
    return {"smallest_class": smallest, "largest_class": largest, "empty_classes": int((counts == 0).sum())}


def order_statistic(folder: Path, split: str) -> float:
    """How far the number of neighbours of the same class is from a random order's, in standard deviations."""
    labels = []
    for batch in batches(folder, ["split", "label"]):
        own = pc.equal(batch["split"].cast(pa.string()), split)
        labels.append(batch["label"].filter(own).to_numpy())
    return neighbour_z(np.concatenate(labels))


def neighbour_z(labels: npt.NDArray[np.int32]) -> float:
    """z-score of the number of equal neighbours under random permutations of ``labels``; 0 if all orders are alike.

    With N labels, S2 = sum n_c (n_c - 1) and S3 = sum n_c (n_c - 1)(n_c - 2) over the classes' counts n_c, the number
    of agreeing pairs among the N - 1 neighbouring pairs has mean S2 / N. Counting the pairs of pairs that share one
    place (N - 2 of them, twice) or none gives the second moment
    S2/N + 2 (N-2) S3 / N3 + (N-2)(N-3) (S2^2 - 4 S3 - 2 S2) / N4, with Nk = N (N-1) ... (N-k+1).
    """
    n = len(labels)
    counts = [int(count) for count in np.unique(labels, return_counts=True)[1]]
    if n < 4:
        return 0.0
    s2 = sum(c * (c - 1) for c in counts)
    s3 = sum(c * (c - 1) * (c - 2) for c in counts)
    n3 = n * (n - 1) * (n - 2)
    mean = s2 / n
    second = mean + 2 * (n - 2) * s3 / n3 + (n - 2) * (n - 3) * (s2 * s2 - 4 * s3 - 2 * s2) / (n3 * (n - 3))
    variance = second - mean * mean
    if variance <= 1e-12:
        return 0.0
    seen = int((labels[1:] == labels[:-1]).sum())
    return (seen - mean) / math.sqrt(variance)


if __name__ == "__main__":
    cli.run(main)
