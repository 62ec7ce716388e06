"""The same split of one or several datasets, concatenated. Training reads its samples through this.

Rows are numbered through the chosen samples of all datasets, in order.
"""

import bisect
import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config.schema import DataConfig
from pipeline.core.arrays import Ints
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.dataset import format as dataset_format
from pipeline.dataset import remote
from pipeline.dataset.format import DatasetInfo, ShardInfo
from pipeline.dataset.index import cache_folder
from pipeline.dataset.shard_cache import Cache
from pipeline.dataset.split import Choice, DatasetSplit


class JoinedSplit:
    """The same split of several datasets that share their class map, concatenated."""

    def __init__(self, parts: Sequence[DatasetSplit]):
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def info(self) -> DatasetInfo:
        """dataset.json of the first dataset; all share its class map."""
        return self.parts[0].info

    @property
    def folder(self) -> Path:
        """Folder of the first dataset, with dataset.json and classes.parquet."""
        return self.parts[0].folder

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        return tuple(item for part in self.parts for item in part.shards)

    @property
    def samples(self) -> tuple[tuple[int, ...], ...]:
        """Number of chosen samples per shard, for each dataset."""
        return tuple(part.samples for part in self.parts)

    @property
    def label(self) -> npt.NDArray[np.int32]:
        """Label of every row; a copy if there are several datasets."""
        if len(self.parts) == 1:
            return self.parts[0].label
        return np.concatenate([part.label for part in self.parts])

    @property
    def digest(self) -> str:
        """Identifies the samples and their order."""
        digests = [part.digest for part in self.parts]
        return digests[0] if len(digests) == 1 else hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:32]

    @property
    def name(self) -> str:
        """The sources, for messages."""
        return " ".join(part.source for part in self.parts)

    def labels(self, rows: Ints) -> Ints:
        if len(self.parts) == 1:
            return self.parts[0].label[rows].astype(np.int64)
        labels = np.empty(len(rows), np.int64)
        for part, places, inside in self._by_part(rows):
            labels[places] = part.label[inside]
        return labels

    def read(self, row: int) -> bytes:
        """The JPEG of one sample, or as much of it as the shard holds."""
        part, inside = self._locate(row)
        return part.read(inside)

    def read_all(self, rows: Ints) -> Iterator[tuple[int, bytes]]:
        """Each sample's place in ``rows`` and its JPEG (or as much as the shard holds), in an efficient order."""
        if len(self.parts) == 1:
            yield from self.parts[0].read_all(rows)
            return
        for part, places, inside in self._by_part(rows):
            for place, jpeg in part.read_all(inside):
                yield int(places[place]), jpeg

    def whole(self, row: int, jpeg: bytes) -> bytes:
        """``jpeg``. Raises ValueError if the shard ended before the sample did."""
        if len(jpeg) != self.size(row):
            raise ValueError(f"the shard ends after {len(jpeg)} of the sample's {self.size(row)} bytes")
        return jpeg

    def read_again(self, row: int) -> bytes:
        """Read an undecodable sample again, from a new copy of its shard if the one in the cache is damaged."""
        part, inside = self._locate(row)
        return part.read_again(inside)

    def cached(self, row: int) -> Path | None:
        """The cache's file that a sample is read from, if it has no hash to check it against; otherwise None."""
        part, inside = self._locate(row)
        return part.cached(inside)

    def size(self, row: int) -> int:
        """Size of a sample's JPEG, bytes."""
        part, inside = self._locate(row)
        return int(part.size[inside])

    def place(self, row: int) -> tuple[str, int]:
        """A sample's shard (with the dataset's name if there are several) and byte offset."""
        part, inside = self._locate(row)
        name, offset = part.where(inside)
        return (name if len(self.parts) == 1 else f"{part.info.name}/{name}"), offset

    def where(self, row: int) -> str:
        """A sample's shard and offset as text for messages."""
        name, offset = self.place(row)
        return f"sample {row} ({name}, byte {offset})"

    def sample_keys(self) -> list[str]:
        """The keys of all samples, by row."""
        return [key for part in self.parts for key in part.sample_keys()]

    @property
    def remote(self) -> bool:
        return any(part.cache is not None for part in self.parts)

    def soon(self, numbers: Ints) -> None:
        """Announce the shards that are needed now and next, by their number in ``samples``, most urgent first."""
        first = 0
        for part in self.parts:
            part.soon([number - first for number in numbers.tolist() if 0 <= number - first < len(part.shards)])
            first += len(part.shards)

    def _locate(self, row: int) -> tuple[DatasetSplit, int]:
        number = bisect.bisect_right(self._ends, row)
        return self.parts[number], row - (self._ends[number - 1] if number else 0)

    def _by_part(self, rows: Ints) -> Iterator[tuple[DatasetSplit, Ints, Ints]]:
        """For each dataset that has some of ``rows``: their places in ``rows``, and the row numbers within it."""
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            yield self.parts[number], places, rows[places] - (self._ends[number - 1] if number else 0)


def open_split(
    sources: str | Path | Sequence[str],
    split: str,
    *,
    choice: Choice | None = None,
    cache: Cache | None = None,
    check: bool = True,
) -> JoinedSplit:
    """Open a split of one or several datasets.

    Raises UserError if a dataset is unfinished, lacks the split or (if ``check``) a shard, or has another class map
    than the first.
    """
    named = [str(sources)] if isinstance(sources, str | Path) else list(sources)
    cache = cache or make_cache(None, DataConfig.cache_gb)
    parts = [DatasetSplit(source, split, choice or Choice(), cache, check=check) for source in named]
    first = parts[0]
    for part in parts[1:]:
        if part.info.classes_digest != first.info.classes_digest:
            raise UserError(
                f"dataset {part.source!r} has another class map ({part.info.classes} classes, digest "
                f"{part.info.classes_digest}) than {first.source!r} ({first.info.classes}, "
                f"{first.info.classes_digest}): shard it again with the same --classes as the other"
            )
    return JoinedSplit(parts)


def chosen(config: DataConfig) -> Choice:
    """The training samples that a configuration asks for. Raises UserError if its class list can't be read."""
    if config.classes is None:
        return Choice((), config.percent)
    try:
        wnids = tuple(unicodedata.normalize("NFC", config.classes.read_text("utf-8-sig")).split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.classes {str(config.classes)!r} can't be read: {error}") from error
    if not wnids:
        raise UserError(f"data.classes {str(config.classes)!r} is empty: write one wnid per line")
    return Choice(wnids, config.percent)


def open_info(source: str) -> DatasetInfo:
    """dataset.json of a dataset in a folder or behind a URL."""
    return dataset_format.read_info(remote.open_folder(source, cache_folder()))


def make_cache(folder: Path | None, gigabytes: float) -> Cache:
    """The cache of shards behind URLs, in ``folder`` or the default cache folder. Created when first used."""
    folder = folder or cache_folder()
    check_local(folder, "data.cache")
    return Cache(folder / "shards", int(gigabytes * 1e9))
