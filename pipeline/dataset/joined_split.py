"""The splits of one name of one or several datasets, one after another. Training reads its samples through this.

Rows count through the chosen samples of all datasets, in their order.
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
    """The splits of one name of several datasets that share their class map, one after another."""

    def __init__(self, parts: Sequence[DatasetSplit]):
        self.parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def info(self) -> DatasetInfo:
        """Of the first: the class map is that of all."""
        return self.parts[0].info

    @property
    def folder(self) -> Path:
        """Of the first: where dataset.json and classes.parquet lie."""
        return self.parts[0].folder

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        return tuple(item for part in self.parts for item in part.shards)

    @property
    def samples(self) -> tuple[tuple[int, ...], ...]:
        """Chosen samples of each shard of each dataset."""
        return tuple(part.samples for part in self.parts)

    @property
    def label(self) -> npt.NDArray[np.int32]:
        """Of every row; a copy where there are several datasets."""
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
        """For messages."""
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
        """Each sample's place in ``rows`` and its JPEG, or what there is of it, in an order that suits the shards."""
        if len(self.parts) == 1:
            yield from self.parts[0].read_all(rows)
            return
        for part, places, inside in self._by_part(rows):
            for place, jpeg in part.read_all(inside):
                yield int(places[place]), jpeg

    def whole(self, row: int, jpeg: bytes) -> bytes:
        """``jpeg``. Raises ValueError where the shard ended before the sample did."""
        if len(jpeg) != self.size(row):
            raise ValueError(f"the shard ends after {len(jpeg)} of the sample's {self.size(row)} bytes")
        return jpeg

    def read_again(self, row: int) -> bytes:
        """A sample that doesn't decode, from a sound copy of its shard if the one in the cache isn't."""
        part, inside = self._locate(row)
        return part.read_again(inside)

    def cached(self, row: int) -> Path | None:
        """The file of the cache that a sample is read from, where it has no hash that tells whether it is sound."""
        part, inside = self._locate(row)
        return part.cached(inside)

    def size(self, row: int) -> int:
        """Of a sample's JPEG, bytes."""
        part, inside = self._locate(row)
        return int(part.size[inside])

    def place(self, row: int) -> tuple[str, int]:
        """A sample's shard, with its dataset where there are several, and offset."""
        part, inside = self._locate(row)
        name, offset = part.where(inside)
        return (name if len(self.parts) == 1 else f"{part.info.name}/{name}"), offset

    def where(self, row: int) -> str:
        """A sample's place for messages."""
        name, offset = self.place(row)
        return f"sample {row} ({name}, byte {offset})"

    def sample_keys(self) -> list[str]:
        """By row."""
        return [key for part in self.parts for key in part.sample_keys()]

    @property
    def remote(self) -> bool:
        return any(part.cache is not None for part in self.parts)

    def soon(self, numbers: Ints) -> None:
        """The shards that are needed now and next, by their number in ``samples``, most urgent first."""
        first = 0
        for part in self.parts:
            part.soon([number - first for number in numbers.tolist() if 0 <= number - first < len(part.shards)])
            first += len(part.shards)

    def _locate(self, row: int) -> tuple[DatasetSplit, int]:
        number = bisect.bisect_right(self._ends, row)
        return self.parts[number], row - (self._ends[number - 1] if number else 0)

    def _by_part(self, rows: Ints) -> Iterator[tuple[DatasetSplit, Ints, Ints]]:
        """Of each dataset that has some of ``rows``: their places, and the rows inside it."""
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
    """Raises UserError where a dataset is unfinished, lacks the split or (unless not to ``check``) a shard, or has
    another class map than the first."""
    named = [str(sources)] if isinstance(sources, str | Path) else list(sources)
    cache = cache or make_cache(None, DataConfig.cache_gb)
    parts = [DatasetSplit(source, split, choice or Choice(), cache, check=check) for source in named]
    first = parts[0]
    for part in parts[1:]:
        if part.info.classes_digest != first.info.classes_digest:
            raise UserError(
                f"dataset {part.source!r} has another class map ({part.info.classes} classes, digest "
                f"{part.info.classes_digest}) than {first.source!r} ({first.info.classes}, "
                f"{first.info.classes_digest}): shard it with --classes of the other"
            )
    return JoinedSplit(parts)


def chosen(config: DataConfig) -> Choice:
    """The training samples that a configuration asks for. Raises UserError where its class list can't be read."""
    if config.classes is None:
        return Choice((), config.percent)
    try:
        wnids = tuple(unicodedata.normalize("NFC", config.classes.read_text("utf-8-sig")).split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.classes {str(config.classes)!r} can't be read: {error}") from error
    if not wnids:
        raise UserError(f"data.classes {str(config.classes)!r} is empty: write one wnid a line")
    return Choice(wnids, config.percent)


def open_info(source: str) -> DatasetInfo:
    """dataset.json of a folder or a URL."""
    return dataset_format.read_info(remote.open_folder(source, cache_folder()))


def make_cache(folder: Path | None, gigabytes: float) -> Cache:
    """Of shards behind URLs, in ``folder``, or where the index's records are kept. Made when it is used first."""
    folder = folder or cache_folder()
    check_local(folder, "data.cache")
    return Cache(folder / "shards", int(gigabytes * 1e9))
