"""The sampling policy: which sample stands at which position, a pure function. Imports no torch.

The global sequence depends on the shards' sizes, the seed and the position alone: not on the number of ranks, workers or
restarts. Nothing of the data set's size is built, so seeking costs the same anywhere.

One epoch: the shards are permuted, and their samples, laid end to end, are cut into ``lanes`` equal runs. Inside a lane
samples are permuted window by window. Position p of the epoch is lane p mod lanes at depth p div lanes, so a rank that
takes each W-th position reads only its own lanes, where W divides the lanes, and each lane from a few shards at a time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

LANES = 64
WINDOW = 16384  # samples that are permuted together: four shards of the usual 4096
_ROUNDS = 6  # Feistel rounds; four already make a pseudo-random permutation (Luby and Rackoff 1988)


@dataclass(frozen=True)
class Order:
    """The order of one split's samples for all time."""

    shard_samples: tuple[int, ...]  # samples of each shard, in index order
    seed: int
    lanes: int = LANES
    window: int = WINDOW

    def __post_init__(self) -> None:
        assert sum(self.shard_samples) > 0
        assert self.lanes > 0
        assert self.window > 0

    @property
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

    def _epoch_rows(self, epoch: int, positions: Ints) -> Ints:
        depth, lane = np.divmod(positions, self.lanes)
        length, longer = divmod(self.samples, self.lanes)  # the first `longer` lanes have one sample more
        lane_start = lane * length + np.minimum(lane, longer)
        lane_length = length + (lane < longer)
        window_start = depth // self.window * self.window
        window_length = np.minimum(self.window, lane_length - window_start)
        key = _mix(_mix(_word(self.seed), _word(epoch)), (lane_start + window_start).astype(np.uint64))
        laid = lane_start + window_start + permute(depth - window_start, window_length, key)
        return self._unlay(epoch, laid)

    def _unlay(self, epoch: int, laid: Ints) -> Ints:
        """Place in the sequence of permuted shards, laid end to end -> index row."""
        sizes = np.asarray(self.shard_samples, np.int64)
        shards = np.random.default_rng([self.seed, epoch, 1]).permutation(len(sizes))
        ends = np.cumsum(sizes[shards])
        which = np.searchsorted(ends, laid, side="right")
        starts = np.cumsum(sizes) - sizes
        return starts[shards[which]] + laid - (ends[which] - sizes[shards[which]])


def step_positions(step: int, global_batch: int, rank: int, world_size: int) -> Ints:
    """Global positions of an optimizer step that belong to one rank: those congruent to it, in order."""
    assert global_batch % world_size == 0
    return np.arange(step * global_batch + rank, (step + 1) * global_batch, world_size, dtype=np.int64)


def sample_seeds(seed: int, epochs: Ints, rows: Ints) -> Words:
    """The seed of each sample's augmentation: a function of (seed, epoch, row)."""
    return _mix(_mix(_word(seed), epochs.astype(np.uint64)), rows.astype(np.uint64))


def permute(index: Ints, size: Ints, key: Words) -> Ints:
    """Element-wise: the image of ``index`` under a permutation of range(``size``) chosen by ``key``.

    A Feistel network over the next power of four, walked until the value falls inside (cycle walking).
    """
    index, size, key = np.broadcast_arrays(index, size, key)
    # each element by its own size, so that its image does not depend on its neighbours in the array
    bits = np.frexp(np.maximum(size - 1, 1).astype(np.float64))[1].astype(np.uint64)
    halves = (bits + np.uint64(1)) // np.uint64(2)
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        value[outside] = _feistel(value[outside], halves[outside], key[outside])
        outside[outside] = value[outside] >= size[outside].astype(np.uint64)
    return value.astype(np.int64)


def _feistel(value: Words, half: Words, key: Words) -> Words:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(key + np.uint64(number), right) & mask)
    return (left << half) | right


def _word(value: int) -> Words:
    return np.asarray(value % 2**64, np.uint64)


def _mix(state: Words, value: Words) -> Words:
    """Hash two words to one: the finaliser of splitmix64 (Steele, Lea and Flood 2014) over a weighted sum."""
    with np.errstate(over="ignore"):
        z = state * np.uint64(0x9E3779B97F4A7C15) + value + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
