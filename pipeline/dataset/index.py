"""Read index.parquet: what the loader needs of each sample (ROW, one record per sample in index order), and keys.

A large split's records are computed once and kept as a file in a cache folder that all processes of a node map: opening
takes milliseconds, memory is shared, and only the pages that are used are read.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import UserError
from pipeline.core.files import appearing
from pipeline.dataset.format import damage_of, open_parquet, read_index

ROW = np.dtype([("shard", np.int32), ("size", np.int32), ("label", np.int32), ("offset", np.int64)])
CACHED = 1 << 20  # samples: from this size on, a split's records (20 MB) are worth a file
_BATCH = 1 << 17  # rows in memory at a time: a row group of index.parquet

Rows = npt.NDArray[np.void]  # of ROW


def read_rows(folder: Path, split: str, samples: int, digest: str, *, cached_from: int = CACHED) -> Rows:
    """The records of a split, read only. Raises UserError unless the index has ``samples`` of them."""
    index = folder / "index.parquet"
    if samples < cached_from:
        rows = np.empty(samples, ROW)
        _fill(rows, index, split)
        return rows
    seen = index.stat()
    path = cache_folder() / f"{digest}-{seen.st_size}-{seen.st_mtime_ns}-{split}.rows"
    try:
        if not path.is_file() or path.stat().st_size != samples * ROW.itemsize:
            _write(path, index, split, samples)
        return np.memmap(path, ROW, "r", shape=(samples,))
    except OSError:  # without a cache: a copy in memory, which forked workers share
        rows = np.empty(samples, ROW)
        _fill(rows, index, split)
        return rows


def split_keys(folder: Path, split: str) -> list[str]:
    """The key of each sample of a split, by row: the name by which the raw image is found."""
    table = read_index(folder, ["split", "key"])
    table = table.filter(table.column("split").cast("string").to_numpy() == split)
    return table.column("key").to_pylist()  # type: ignore[no-any-return]


def cache_folder() -> Path:
    """VIT_CACHE, or the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    if "VIT_CACHE" in os.environ:
        return Path(os.environ["VIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit-pipeline"


def _write(path: Path, index: Path, split: str, samples: int) -> None:
    """Write to a temporary file and rename it, so that ranks that write at the same time see whole files only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as aside, aside.open("wb") as file:
        written = 0
        for part in _parts(index, split):
            file.write(part.data)
            written += len(part)
        _check(written, samples, index, split)


def _fill(rows: Rows, index: Path, split: str) -> None:
    at = 0
    for part in _parts(index, split):
        if at + len(part) <= len(rows):
            rows[at : at + len(part)] = part
        at += len(part)
    _check(at, len(rows), index, split)


def _parts(index: Path, split: str) -> Iterator[Rows]:
    columns = list(ROW.names or ())
    # no Array.index or to_numpy: each imports pandas if it is installed, which takes 0.3 s
    # pre_buffer would read the columns of all row groups at once
    with open_parquet(index, pre_buffer=False) as file, damage_of(index):
        for batch in file.iter_batches(_BATCH, columns=["split", *columns], use_threads=False):
            names = batch.column("split")
            code = {name: code for code, name in enumerate(names.dictionary.to_pylist())}.get(split, -1)
            chosen = np.from_dlpack(names.indices) == code
            part = np.empty(np.count_nonzero(chosen), ROW)
            for name in columns:
                values = np.from_dlpack(batch.column(name))
                part[name] = values if len(part) == len(values) else values[chosen]
            yield part


def _check(found: int, expected: int, index: Path, split: str) -> None:
    if found != expected:
        raise UserError(
            f"{str(index)!r} has {found} samples of split {split!r} and dataset.json says {expected}: "
            "make the dataset again"
        )
