"""An opened split of one dataset, in a folder or behind a URL, with all or a choice of its samples, read by row."""

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import xxhash

from pipeline.core import retry
from pipeline.core.arrays import Ints
from pipeline.core.errors import UserError
from pipeline.core.files import is_remote
from pipeline.dataset import format as dataset_format
from pipeline.dataset import hub_dataset, remote, urls
from pipeline.dataset.index import Rows, read_rows, split_keys
from pipeline.dataset.shard_cache import Cache, Prefetcher, Wanted

_OPEN = 400  # tars of all splits that a process keeps open; the usual limit is 1,024 files
_open: OrderedDict[tuple[object, int], int] = OrderedDict()  # split and shard -> descriptor, least recently used first


@dataclass(frozen=True)
class Choice:
    """Which samples of a split are used; by default all."""

    classes: tuple[str, ...] = ()  # wnids; empty: all
    percent: float = 100.0  # of the samples of these classes, the first ones in index order


class DatasetSplit:
    """One dataset's split: its index columns, and its tars or where to fetch them."""

    def __init__(self, source: str, split: str, choice: Choice, cache: Cache, *, check: bool):
        self.source = hub_dataset.pinned(source) if hub_dataset.is_hub(source) else source
        self.split = split
        self.folder = remote.open_folder(self.source, cache.folder.parent)
        self.info = dataset_format.read_info(self.folder)
        self._tars = remote.tars_of(self.source, self.info)
        every = self.info.split_shards(split)
        rows = read_rows(self.folder, split, self.info.samples[split], self.info.digest)
        self.kept = _choose(rows, choice, self.folder)  # rows of the whole split; None: all of them
        if self.kept is not None:
            prefix = self.kept[-1] == len(self.kept) - 1  # of which no copy is needed
            rows = rows[: len(self.kept)] if prefix else rows[self.kept]
        self.shard, self.offset, self.size, self.label = (rows[name] for name in ("shard", "offset", "size", "label"))
        counts = {item.shard: item.samples for item in every}
        if self.kept is not None:
            numbers, found = np.unique(self.shard, return_counts=True)
            counts = dict(zip(numbers.tolist(), found.tolist(), strict=True))
        self.shards = tuple(item for item in every if counts.get(item.shard))
        self.samples = tuple(counts[item.shard] for item in self.shards)
        self.cache = cache if is_remote(self._tars) else None
        self._place = {item.shard: number for number, item in enumerate(self.shards)}
        self._wanted = [
            Wanted(urls.join(self._tars, item.file_name), item.bytes, item.xxh3_128, self.info.digest)
            for item in (self.shards if self.cache else ())
        ]
        self._mark = object()  # whose tars are which in _open
        self._ahead: Prefetcher | None = None
        if check:
            self._check()

    def __len__(self) -> int:
        return len(self.label)

    @property
    def digest(self) -> str:
        """Digest of the chosen samples; the dataset's own if all are chosen."""
        if self.kept is None:
            return self.info.digest
        chosen = [self.info.digest, xxhash.xxh3_128_hexdigest(self.kept.astype("<i8").tobytes())]
        return hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:32]

    def read(self, row: int) -> bytes:
        """The JPEG of a sample, or as much of it as the shard holds."""
        shard, offset, size = int(self.shard[row]), int(self.offset[row]), int(self.size[row])
        if self.cache is None:
            return retry.pread(self._file(shard), size, offset, self._path(shard))
        return self._from_cache(shard, [(offset, size)])[0]

    def read_all(self, rows: Ints) -> Iterator[tuple[int, bytes]]:
        """Each sample's place in ``rows`` and its JPEG, shard by shard."""
        owners, offsets, sizes = self.shard[rows], self.offset[rows].tolist(), self.size[rows].tolist()
        order = np.argsort(owners, kind="stable").tolist()
        if self.cache is None:
            numbers = owners.tolist()
            for place in order:  # so that a shared file system reads ahead while we decode
                os.posix_fadvise(self._file(numbers[place]), offsets[place], sizes[place], os.POSIX_FADV_WILLNEED)
            for place in order:
                shard = numbers[place]
                yield place, retry.pread(self._file(shard), sizes[place], offsets[place], self._path(shard))
            return
        at = 0
        while at < len(order):
            owner = owners[order[at]]
            end = next((later for later in range(at, len(order)) if owners[order[later]] != owner), len(order))
            jpegs = self._from_cache(int(owner), [(offsets[place], sizes[place]) for place in order[at:end]])
            yield from zip(order[at:end], jpegs, strict=True)
            at = end

    def read_again(self, row: int) -> bytes:
        """Read an undecodable sample again, from a new copy of its shard if the one in the cache is damaged."""
        if self.cache is not None:
            self.cache.distrust(self._wanted[self._place[int(self.shard[row])]])
        return self.read(row)

    def cached(self, row: int) -> Path | None:
        """The cache's file that a sample is read from, if it has no hash to check it against; otherwise None."""
        if self.cache is None:
            return None
        wanted = self._wanted[self._place[int(self.shard[row])]]
        return None if wanted.xxh3_128 else self.cache.folder / wanted.name

    def soon(self, numbers: Sequence[int]) -> None:
        """Announce the shards that are needed now and next, by their number among the chosen ones."""
        if self.cache is not None:
            self._ahead = self._ahead or Prefetcher(self.cache)
            self._ahead.want([self._wanted[number] for number in numbers])

    def where(self, row: int) -> tuple[str, int]:
        """A sample's shard and byte offset."""
        item = self.shards[self._place[int(self.shard[row])]]
        return item.file_name, int(self.offset[row])

    def sample_keys(self) -> list[str]:
        keys = split_keys(self.folder, self.split)
        return keys if self.kept is None else [keys[row] for row in self.kept.tolist()]

    def _file(self, shard: int) -> int:
        """A descriptor, valid until the next call, which may close it if a batch has samples of many shards."""
        key = self._mark, shard
        if key not in _open:
            while len(_open) >= _OPEN:
                os.close(_open.popitem(last=False)[1])
            _open[key] = retry.open_file(self._path(shard))
        _open.move_to_end(key)
        return _open[key]

    def _path(self, shard: int) -> Path:
        return self.folder / self.shards[self._place[shard]].file_name

    def _from_cache(self, shard: int, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes at each (offset, size) of a shard behind a URL."""
        assert self.cache is not None
        cache, wanted = self.cache, self._wanted[self._place[shard]]

        def read() -> list[bytes]:
            with cache.open(wanted) as file:
                return [os.pread(file, size, offset) for offset, size in places]

        return retry.steadily(read, cache.folder / wanted.name)

    def _check(self) -> None:
        """Raises UserError if a shard is missing or incomplete."""
        if self.cache is not None:
            self.cache.check([item.bytes for item in self.shards])
            remote.check_shards(self._tars, self.folder, self.shards)
            return
        for item in self.shards:
            path = self.folder / item.file_name
            try:
                found = path.stat().st_size
            except OSError:
                found = -1
            if found != item.bytes:
                raise UserError(
                    f"shard {str(path)!r} is missing or not {item.bytes} bytes long: copy or make the dataset again"
                )


def _share(percent: float, count: int) -> int:
    """``percent`` of ``count``, rounded up; computed from the decimal number, as 16.1 is slightly more in binary."""
    return math.ceil(Fraction(str(percent)) * count / 100)


def _choose(rows: Rows, choice: Choice, folder: Path) -> Ints | None:
    """The chosen rows, ascending; None for all. Raises UserError."""
    if not 0 < choice.percent <= 100:
        raise UserError(f"data.percent {choice.percent:g} must be above 0 and at most 100")
    kept = np.arange(_share(choice.percent, len(rows))) if choice.percent < 100 else None
    if choice.classes:
        wnids = dataset_format.read_classes(folder)["wnid"].to_pylist()
        missing = sorted(set(choice.classes) - set(wnids))
        if missing:
            raise UserError(
                f"data.classes names {len(missing)} classes that {str(folder)!r} doesn't have: {', '.join(missing[:5])}"
            )
        kept = np.flatnonzero(np.isin(rows["label"], [wnids.index(wnid) for wnid in choice.classes]))
        kept = kept[: _share(choice.percent, len(kept))]
        if not len(kept):
            raise UserError(f"data.classes selects no sample of {str(folder)!r}: name classes that have images")
    return kept
