"""Which image goes to which shard, in which order: a pure function of the images' names, the seed and the options.

An image is identified by its class and its name within the class. Nothing here depends on where the bytes are, so the
form of the source, the number of workers and the number of tasks can't change the result. Tables have CATALOGUE
columns; partition.py cuts them into buckets by hash, so that 14 million rows are never in memory at once.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_prep.tables import PLAN

_OF_A_RELEASE = re.compile(r"ILSVRC2012_(val|test)_\d{8}$")  # unique there
_TRIPS = r"%.\\\x00-\x1f\x7f\udc80-\udcff"  # a dot would end the key; the rest trips tools
_ESCAPED = re.compile(f"[{_TRIPS}]")
# a name of which key_of keeps the stem, and its class
_PLAIN = re.compile(rf"((?!__)([^/{_TRIPS}]+)_[^_/{_TRIPS}]+)\.[^./]+")


@dataclass(frozen=True)
class SplitRule:
    """How a class's images are divided. At most one of the two rules is set."""

    split: str = "train"
    held_out: str = "val"
    fraction: float = 0.0  # of each class, by hash
    first: int = 0  # of each class, in the order of names (ImageNet-21K-P's rule: 50)


def key_of(wnid: str, name: str) -> str:
    """The sample's key: the original name without its ending, prefixed by ``<class>/`` unless it is ``<class>_<rest>``

    It is also prefixed if the rest contains ``_``, because ``a_b_1`` may be an image of class ``a`` or of ``a_b``.
    Characters that WebDataset keys can't hold are written %XX, so that keys stay unique and traceable; so is the first
    of two leading underscores, because webdataset skips ``__name__/`` as metadata.
    """
    stem, dot, _ending = name.rpartition(".")
    stem = stem if dot and stem and not stem.endswith("/") else name
    if "/" in stem or not (stem.rpartition("_")[0] == wnid or _OF_A_RELEASE.match(stem)):
        stem = f"{wnid}/{stem}"
    escaped = _ESCAPED.sub(_percent, stem)
    return f"%5F{escaped[1:]}" if escaped.startswith("__") else escaped


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def hashes(keys: list[str], seed: int) -> npt.NDArray[np.uint64]:
    """xxh3_64 of each key: the order of the dataset is the order of these."""
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(key.encode(), seed) for key in keys), np.uint64, len(keys))


def by_class(table: pa.Table) -> pa.Table:
    """Rows in (class, name) order; rows of one class and name stay in their order."""
    table = table.append_column("row", pa.array(np.arange(len(table))))
    order = [("wnid", "ascending"), ("name", "ascending"), ("row", "ascending")]
    return table.sort_by(order).drop_columns("row").combine_chunks()


def overwritten(table: pa.Table) -> pa.Array:
    """Which rows of ``by_class`` another one of the same class and name follows.

    The last one counts, as when a tar with two members of one name is unpacked.
    """
    wnid, name = (_one_chunk(table[column]) for column in ("wnid", "name"))
    same = pc.and_(pc.equal(wnid[:-1], wnid[1:]), pc.equal(name[:-1], name[1:]))
    return pa.concat_arrays([same, pa.array([False] * min(len(table), 1), pa.bool_())])


def told_apart(table: pa.Table, name_of: Callable[[int], str]) -> pa.Table:
    """Rows of ``by_class``; where several tars or folders have an image of one class and name, theirs before its name.

    As WebDataset's tars do whose writer counted from 0 in each.
    """
    follows = overwritten(table).to_pylist()
    if not any(follows):
        return table
    names, numbers = table["name"].to_pylist(), table["tar"].to_pylist()
    start = 0
    for row, another in enumerate(follows):
        if another:
            continue
        if len(set(numbers[start : row + 1])) > 1:
            names[start : row + 1] = [f"{name_of(numbers[k])}/{names[k]}" for k in range(start, row + 1)]
        start = row + 1
    return by_class(table.set_column(table.schema.get_field_index("name"), "name", pa.array(names, pa.string())))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def with_keys(table: pa.Table, labels: dict[str, int], rule: SplitRule, seed: int) -> pa.Table:
    """``table``, whole classes in (class, name) order, with PLAN's columns. Each wnid must be in ``labels``."""
    wnids: list[str] = table["wnid"].to_pylist()
    names: list[str] = table["name"].to_pylist()
    keys = _unique_keys(wnids, names)
    order = hashes(keys, seed)
    held_out = np.zeros(len(keys), bool)
    for start, end in _runs(wnids):
        held_out[start:end] = _held_out(keys[start:end], rule, seed)
    split = np.where(held_out, rule.held_out, rule.split)
    columns = {
        "key": pa.array(keys, pa.string()),
        "label": pa.array([labels[wnid] for wnid in wnids], pa.int32()),
        "split": pa.array(split, pa.string()),
        "hash": pa.array(order),
    }
    for column, values in columns.items():
        table = table.append_column(column, values)
    return table.cast(PLAN)


def _unique_keys(wnids: list[str], names: list[str]) -> list[str]:
    """The keys. If a class has a.jpg and a.png, the later one keeps its ending in its key."""
    keys: list[str] = []
    taken: set[str] = set()
    plain = _PLAIN.fullmatch
    for wnid, name in zip(wnids, names, strict=True):
        match = plain(name)
        key = match[1] if match and match[2] == wnid else key_of(wnid, name)
        if key in taken:
            key = key_of(wnid, f"{name}.jpg")
        taken.add(key)
        keys.append(key)
    return keys


def _runs(values: list[str]) -> list[tuple[int, int]]:
    """(start, end) of each run of equal values."""
    edges = [row for row in range(1, len(values)) if values[row] != values[row - 1]]
    return list(zip([0, *edges], [*edges, len(values)], strict=True)) if values else []


def _held_out(keys: list[str], rule: SplitRule, seed: int) -> npt.NDArray[np.bool_]:
    """Which of one class's images, given in name order, go to the held-out split."""
    count = len(keys)
    chosen = np.zeros(count, bool)
    if rule.first:
        chosen[: rule.first] = True
    elif rule.fraction and count > 1:
        share = int(count * Fraction(rule.fraction).limit_denominator(10**6) + Fraction(1, 2))
        share = min(max(share, 1), count - 1)  # a class of two or more is in both splits
        chosen[np.argsort(hashes(keys, seed ^ _SPLIT_SEED), kind="stable")[:share]] = True
    return chosen


_SPLIT_SEED = 0x5EED_0F_5711  # any constant: makes the split independent of the order


def shuffled(table: pa.Table) -> pa.Table:
    """Rows in the dataset's order: by hash; equal hashes (1 in 10^5 datasets of this size) by key."""
    return table.sort_by([("hash", "ascending"), ("key", "ascending"), ("name", "ascending")])
