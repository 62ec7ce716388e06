"""Several datasets by weight: which dataset provides which position, a pure function. Imports no torch.

Positions that are congruent modulo LANES form a stream. A stream is cut into blocks of BLOCK positions, of which each
dataset gets its share, spread evenly and shuffled over STRETCH positions. The seed determines the pattern once for all
blocks, so that it can be looked up.

Each dataset is read in its own order. A small one (one lane; see order.py) continues across all streams. A large one
continues within each stream, so that a rank reads the same lanes of it as it would without the others; the streams
advance together, apart from a few positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import Ints
from pipeline.core.errors import UserError
from pipeline.loader.order import LANES, Order, key_of

BLOCK = 4096  # positions of a stream in which the shares are exact
STRETCH = 32  # positions that are shuffled together


@dataclass(frozen=True)
class Mixture:
    """The order of the samples of several datasets for all time. Rows count through all of them."""

    orders: tuple[Order, ...]
    shares: tuple[int, ...]  # of each dataset in a block; they add up to BLOCK

    def __post_init__(self) -> None:
        assert sum(self.shares) == BLOCK
        assert min(self.shares) > 0
        assert len({order.seed for order in self.orders}) == 1

    @property
    def seed(self) -> int:
        return self.orders[0].seed

    @property
    def samples(self) -> int:
        """Samples of all datasets: one epoch in the sense of schedule.epochs."""
        return sum(order.samples for order in self.orders)

    def rows(self, positions: Ints) -> tuple[Ints, Ints]:
        """For each global position: the epoch of its sample's dataset, and the row."""
        epochs, rows = np.empty_like(positions), np.empty_like(positions)
        which, own = self.own_positions(positions)
        first = 0
        for number, order in enumerate(self.orders):
            chosen = which == number
            if chosen.any():
                epochs[chosen], inside = order.rows(own[chosen])
                rows[chosen] = inside + first
            first += order.samples
        return epochs, rows

    def own_positions(self, positions: Ints) -> tuple[Ints, Ints]:
        """For each global position: the number of its dataset, and the position in that dataset's own order."""
        block, place = np.divmod(positions, BLOCK * LANES)
        which = self._pattern[0][place].astype(np.int64)
        return which, block * np.asarray(self.shares)[which] * LANES + self._pattern[1][place]

    @cached_property
    def _pattern(self) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int32]]:
        """The result of own_positions for the first block of all streams."""
        sets = np.repeat(np.arange(len(self.shares), dtype=np.int16), self.shares)
        part = np.concatenate([(np.arange(share) + 0.5) / share for share in self.shares])
        evenly = sets[np.argsort(part, kind="stable")]
        depth, stream = np.ogrid[:BLOCK, :LANES]
        random = key_of(self.seed, stream, depth) >> np.uint64(7)
        shuffled = np.argsort((depth // STRETCH).astype(np.uint64) << np.uint64(57) | random, axis=0, kind="stable")
        # each stream starts at another place of the even sequence, so that rare samples don't come in all at once
        which = evenly[(shuffled + BLOCK // LANES * stream) % BLOCK]
        own = np.empty(which.shape, np.int32)
        for number, order in enumerate(self.orders):
            mine = which == number
            if order.lanes == 1:
                own[mine] = np.arange(mine.sum())
            else:
                own[mine] = ((np.cumsum(mine, axis=0) - 1) * LANES + stream)[mine]
        return which.ravel(), own.ravel()

    def shards_near(self, positions: Ints) -> Ints:
        """As Order.shards_near; shards are numbered through all datasets."""
        which, own = self.own_positions(positions)
        found, first = [], 0
        for number, order in enumerate(self.orders):
            if (which == number).any():
                found.append(order.shards_near(own[which == number]) + first)
            first += len(order.shard_samples)
        return np.concatenate(found)

    def whole_epochs(self, positions: int) -> list[int]:
        """For each dataset, the number of complete epochs in the first ``positions`` positions."""
        blocks = positions // (BLOCK * LANES)
        return [blocks * share * LANES // order.samples for order, share in zip(self.orders, self.shares, strict=True)]


def sampling(samples: Sequence[tuple[int, ...]], seed: int, weights: Sequence[float] = ()) -> Order | Mixture:
    """The order over datasets with these samples per shard: by ``weights``, or all as one dataset if there are none."""
    if not weights:
        return Order(tuple(size for sizes in samples for size in sizes), seed)
    if len(weights) != len(samples):
        raise UserError(
            f"data.weights has {len(weights)} numbers but data.train has {len(samples)} datasets: give one per dataset"
        )
    return Mixture(tuple(Order(sizes, seed) for sizes in samples), shares(weights))


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as parts of BLOCK, by largest remainders. Raises UserError for one that is too small."""
    total = sum(weights)
    exact = [weight / total * BLOCK if total > 0 else 0.0 for weight in weights]
    if not all(np.isfinite(weights)) or min(exact) < 1:
        raise UserError(
            f"data.weights {' '.join(map(str, weights))}: each must be at least 1/{BLOCK} of their sum: remove "
            "datasets with a smaller weight"
        )
    result = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: result[number] - exact[number])
    for number in by_remainder[: BLOCK - sum(result)]:
        result[number] += 1
    return tuple(result)
