"""The sample order: which sample is at which position, a pure function. Imports no torch.

The global sequence depends only on the shards' sizes, the seed and the position, not on the number of ranks, workers or
restarts. No array of the dataset's size is built, so seeking costs the same anywhere.

One epoch: the shards are permuted; their samples, laid end to end, are rotated by a random number and cut into
``lanes`` equal lanes. Within a lane, samples are permuted window by window; a split that fits into one window is one
lane. Position p of the epoch is lane p mod lanes at depth p div lanes. So a rank that takes every W-th position reads
only its own lanes if W divides the number of lanes, and each lane from a few shards at a time.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.core.arrays import Ints, Words

LANES = 64
WINDOW = 16384  # samples that are permuted together: four shards of the usual 4096
LEDGER_BITS = 40
_ROUNDS = 6  # Feistel rounds; four already make a pseudo-random permutation (Luby and Rackoff 1988)


@dataclass(frozen=True)
class Order:
    """The order of one split's samples for all time."""

    shard_samples: tuple[int, ...]  # samples of each shard, in index order
    seed: int
    lanes: int = 0  # 0: LANES, or 1 if all samples fit into one window
    window: int = WINDOW

    def __post_init__(self) -> None:
        assert sum(self.shard_samples) > 0
        if self.lanes == 0:
            object.__setattr__(self, "lanes", LANES if self.samples > self.window else 1)
        assert self.lanes > 0
        assert self.window > 0

    @cached_property
    def samples(self) -> int:
        return sum(self.shard_samples)

    def rows(self, positions: Ints) -> tuple[Ints, Ints]:
        """Epoch and index row of each global position (any int64 >= 0, any order)."""
        epochs, inside = np.divmod(positions, self.samples)
        rows = np.empty_like(inside)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._epoch_rows(int(epoch), inside[chosen])
        return epochs, rows

    def whole_epochs(self, positions: int) -> list[int]:
        """The number of complete epochs in the first ``positions`` positions."""
        return [positions // self.samples]

    def shards_near(self, positions: Ints) -> Ints:
        """Numbers of the shards that the windows of these positions use, then those of the next windows in the same
        lanes; each once."""
        found: list[Ints] = []
        for ahead in (0, self.window * self.lanes):
            epochs, inside = np.divmod(positions + ahead, self.samples)
            for epoch in np.unique(epochs):
                starts, _, lengths = self._windows(inside[epochs == epoch])
                shards, ends = self._lay(int(epoch))
                for start, length in np.unique(np.stack([starts, lengths]), axis=1).T.tolist():
                    low = (start + self._turn(int(epoch))) % self.samples
                    high = low + length
                    for begin, end in ((low, min(high, self.samples)), (0, high - self.samples)):
                        if end > begin:
                            first, last = np.searchsorted(ends, [begin, end - 1], side="right")
                            found.append(shards[first : last + 1])
        numbers = np.concatenate(found)
        _, at = np.unique(numbers, return_index=True)
        return numbers[np.sort(at)]

    def _epoch_rows(self, epoch: int, positions: Ints) -> Ints:
        start, depth, length = self._windows(positions)
        key = _mix(_mix(_word(self.seed), _word(epoch)), start.astype(np.uint64))
        laid = (start + permute(depth, length, key) + self._turn(epoch)) % self.samples
        # place in the sequence of permuted shards, laid end to end -> index row
        shards, ends = self._lay(epoch)
        sizes, starts = self._sizes
        which = np.searchsorted(ends, laid, side="right")
        rows: Ints = starts[shards[which]] + laid - (ends[which] - sizes[shards[which]])
        return rows

    def _windows(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """For an epoch's positions: start of the window, depth within it, and the window's length."""
        depth, lane = np.divmod(positions, self.lanes)
        length, longer = divmod(self.samples, self.lanes)  # the first `longer` lanes have one sample more
        lane_start = lane * length + np.minimum(lane, longer)
        lane_length = length + (lane < longer)
        window_start = depth // self.window * self.window
        return lane_start + window_start, depth - window_start, np.minimum(self.window, lane_length - window_start)

    def _lay(self, epoch: int) -> tuple[Ints, Ints]:
        """An epoch's order of the shards, and where each ends when they are laid end to end."""
        if epoch not in self._laid:
            numbers = np.arange(len(self.shard_samples), dtype=np.uint64)
            keys = _mix(_mix(_mix(_word(self.seed), _word(epoch)), _word(2)), numbers)
            shards = np.argsort(keys, kind="stable")
            while len(self._laid) > 2:
                del self._laid[next(iter(self._laid))]
            self._laid[epoch] = shards, np.cumsum(self._sizes[0][shards])
        return self._laid[epoch]

    @cached_property
    def _laid(self) -> dict[int, tuple[Ints, Ints]]:
        """The results of _lay for the latest epochs."""
        return {}

    @cached_property
    def _sizes(self) -> tuple[Ints, Ints]:
        """Samples and first row of each shard."""
        sizes = np.asarray(self.shard_samples, np.int64)
        return sizes, np.cumsum(sizes) - sizes

    def _turn(self, epoch: int) -> int:
        return int(_mix(_mix(_mix(_word(self.seed), _word(epoch)), _word(1)), _word(0)) % np.uint64(self.samples))


def micro_batch_positions(
    step: int, part: int, *, global_batch: int, micro_batch: int, rank: int, world_size: int
) -> Ints:
    """Global positions of one rank's ``part``-th micro-batch in an optimizer step: congruent to the rank.

    An even micro-batch holds pairs: its elements i and i + micro_batch/2 are half a global batch apart, whatever the
    number of ranks, so that mixup (pipeline.train.mixup) needs no other rank's images.
    """
    assert global_batch % (micro_batch * world_size) == 0
    first = step * global_batch + rank
    if micro_batch % 2:
        return first + world_size * np.arange(part * micro_batch, (part + 1) * micro_batch, dtype=np.int64)
    half = micro_batch // 2
    pairs = first + world_size * np.arange(part * half, (part + 1) * half, dtype=np.int64)
    return np.concatenate([pairs, pairs + global_batch // 2])


def ledger_hash(samples: Ints) -> int:
    """A hash of a set of samples that doesn't depend on their order, below 2**LEDGER_BITS.

    Sums over ranks stay exact in float64 (up to 8,192 of them); take the sum modulo 2**LEDGER_BITS.
    """
    hashes: Words = _mix(_word(0x6C6564676572), samples.astype(np.uint64)) & np.uint64((1 << LEDGER_BITS) - 1)
    return int(hashes.sum(dtype=np.uint64)) % (1 << LEDGER_BITS)


def sample_seeds(seed: int, epochs: Ints, rows: Ints) -> Words:
    """The seed of each sample's augmentation: a function of (seed, epoch, row)."""
    return _mix(_mix(_word(seed), epochs.astype(np.uint64)), rows.astype(np.uint64))


def permute(index: Ints, size: Ints, key: Words) -> Ints:
    """Element-wise: the image of ``index`` under a permutation of range(``size``) chosen by ``key``.

    A Feistel network over the smallest near-square grid of at least ``size`` cells, walked until the value falls inside
    (cycle walking; the grid exceeds ``size`` by less than its square root, so one walk nearly always does).
    """
    index, size, key = np.broadcast_arrays(index, size, key)
    # each element by its own size, so that its image does not depend on its neighbours in the array
    columns = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    limit = size.astype(np.uint64)
    rows = (limit + columns - np.uint64(1)) // columns
    value = _feistel(index.astype(np.uint64), rows, columns, key)
    while (outside := value >= limit).any():
        value[outside] = _feistel(value[outside], rows[outside], columns[outside], key[outside])
    return value.astype(np.int64)


def _feistel(value: Words, rows: Words, columns: Words, key: Words) -> Words:
    row, column = np.divmod(value, columns)
    for number in range(0, _ROUNDS, 2):
        column = (column + _mix(key + np.uint64(number), row) % columns) % columns
        row = (row + _mix(key + np.uint64(number + 1), column) % rows) % rows
    return row * columns + column


def key_of(seed: int, *numbers: Ints) -> Words:
    """A key for permute, element-wise, that depends on all arguments."""
    key = _mix(_word(seed), _word(0x6D6978747572))
    for number in numbers:
        key = _mix(key, number.astype(np.uint64))
    return key


def _word(value: int) -> Words:
    return np.asarray(value % 2**64, np.uint64)


def _mix(state: Words, value: Words) -> Words:
    """Hash two words to one: the finaliser of splitmix64 (Steele, Lea and Flood 2014) over a weighted sum."""
    with np.errstate(over="ignore"):
        z = state * np.uint64(0x9E3779B97F4A7C15) + value + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
