"""Several data sets by weight: which of them stands at which position, a pure function. Imports no torch.

Positions that are congruent modulo LANES form a stream of their own. A stream is cut into blocks of BLOCK positions, of
which each data set gets its share, at places that a permutation by (seed, stream, block) chooses. A data set's own
positions follow each other in every stream, so its epochs hold each of its samples once, and a rank reads the lanes of
a data set that it would read of that data set alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cli import UserError
from pipeline.order import LANES, Ints, Order, key_of, permute

BLOCK = 4096  # positions of a stream in which the shares are exact


@dataclass(frozen=True)
class Mixture:
    """The order of the samples of several data sets for all time. Rows count through all of them."""

    orders: tuple[Order, ...]
    shares: tuple[int, ...]  # of each data set in a block; they add up to BLOCK

    def __post_init__(self) -> None:
        assert sum(self.shares) == BLOCK
        assert min(self.shares) > 0
        assert len({order.seed for order in self.orders}) == 1

    @property
    def seed(self) -> int:
        return self.orders[0].seed

    @property
    def samples(self) -> int:
        """Of all data sets; an epoch in the sense of schedule.epochs."""
        return sum(order.samples for order in self.orders)

    def rows(self, positions: Ints) -> tuple[Ints, Ints]:
        """Epoch of the sample's data set, and row, of each global position."""
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
        """Of each global position, the number of its data set and the position in that data set's own order."""
        depth, stream = np.divmod(positions, LANES)
        block, place = np.divmod(depth, BLOCK)
        slot = permute(place, np.full_like(place, BLOCK), key_of(self.seed, stream, block))
        ends = np.cumsum(self.shares)
        which = np.searchsorted(ends, slot, side="right")
        shares = np.asarray(self.shares)[which]
        own_depth = block * shares + slot - (ends[which] - shares)
        return which, own_depth * LANES + stream

    def shards_near(self, positions: Ints) -> Ints:
        """As Order's; shards count through all data sets."""
        which, own = self.own_positions(positions)
        found, first = [], 0
        for number, order in enumerate(self.orders):
            if (which == number).any():
                found.append(order.shards_near(own[which == number]) + first)
            first += len(order.shard_samples)
        return np.concatenate(found)

    def whole_epochs(self, positions: int) -> list[int]:
        """Of each data set, the epochs that the first ``positions`` positions hold entirely."""
        blocks = positions // (BLOCK * LANES)
        return [blocks * share * LANES // order.samples for order, share in zip(self.orders, self.shares, strict=True)]


def sampling(samples: Sequence[tuple[int, ...]], seed: int, weights: Sequence[float] = ()) -> Order | Mixture:
    """The order over data sets with these samples a shard: by ``weights``, or without them all in one."""
    if not weights:
        return Order(tuple(size for sizes in samples for size in sizes), seed)
    if len(weights) != len(samples):
        raise UserError(
            f"data.weights has {len(weights)} numbers and data.train {len(samples)} data sets: give one for each"
        )
    return Mixture(tuple(Order(sizes, seed) for sizes in samples), shares(weights))


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as parts of BLOCK, by largest remainders. Raises UserError for one that is too small."""
    total = sum(weights)
    exact = [weight / total * BLOCK if total > 0 else 0.0 for weight in weights]
    if not all(np.isfinite(weights)) or min(exact) < 1:
        raise UserError(
            f"data.weights {' '.join(map(str, weights))}: each must be at least 1/{BLOCK} of their sum: leave out the "
            "data set of a smaller one"
        )
    result = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: result[number] - exact[number])
    for number in by_remainder[: BLOCK - sum(result)]:
        result[number] += 1
    return tuple(result)
