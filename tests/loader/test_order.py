"""The sampling policy, as mathematics: grids of sizes and world sizes, no processes."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bench_order
from pipeline.loader.order import Order, ledger_hash, micro_batch_positions, permute, sample_seeds

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple)


@given(SHARDS, st.integers(0, 5), st.integers(0, 5), st.integers(1, 70), st.integers(1, 50))
def test_each_sample_comes_exactly_once_an_epoch(
    shards: tuple[int, ...], seed: int, epoch: int, lanes: int, window: int
) -> None:
    order = Order(shards, seed, lanes, window)
    total = sum(shards)
    epochs, rows = order.rows(np.arange(epoch * total, (epoch + 1) * total))
    assert (epochs == epoch).all()
    assert sorted(rows.tolist()) == list(range(total))


@given(SHARDS, st.integers(0, 5), st.integers(1, 70), st.integers(1, 50), st.data())
def test_seeking_is_iterating(shards: tuple[int, ...], seed: int, lanes: int, window: int, data: st.DataObject) -> None:
    order = Order(shards, seed, lanes, window)
    length = 3 * sum(shards)
    epochs, rows = order.rows(np.arange(length))
    wanted = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)))
    some_epochs, some_rows = order.rows(wanted)  # any positions, in any order, several epochs at once
    assert some_epochs.tolist() == epochs[wanted].tolist()
    assert some_rows.tolist() == rows[wanted].tolist()


@given(
    st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 3), st.integers(0, 7), st.data()
)
def test_any_world_size_and_micro_batch_sees_the_same_global_batch(
    world: int, micro: int, passes: int, step: int, data: st.DataObject
) -> None:
    global_batch = world * micro * passes

    def batch(world: int, micro: int) -> list[int]:
        parts = [
            micro_batch_positions(step, part, global_batch=global_batch, micro_batch=micro, rank=rank, world_size=world)
            for rank in range(world)
            for part in range(global_batch // (micro * world))
        ]
        assert all(len(part) == micro for part in parts)
        assert all(((part - rank) % world == 0).all() for rank in range(world) for part in parts[rank * passes : rank])
        return sorted(np.concatenate(parts).tolist())

    everything = list(range(step * global_batch, (step + 1) * global_batch))
    assert batch(world, micro) == everything
    other_world = data.draw(st.sampled_from([w for w in range(1, 9) if global_batch % w == 0]))
    share = global_batch // other_world
    other_micro = data.draw(st.sampled_from([m for m in range(1, share + 1) if share % m == 0]))
    assert batch(other_world, other_micro) == everything


@given(st.sampled_from([1, 2, 4]), st.sampled_from([2, 4, 8]), st.integers(1, 3), st.integers(0, 3))
def test_mixup_partners_stand_half_a_micro_batch_apart_for_any_world_size(
    world: int, micro: int, passes: int, step: int
) -> None:
    global_batch = world * micro * passes
    for rank in range(world):
        for part in range(passes):
            positions = micro_batch_positions(
                step, part, global_batch=global_batch, micro_batch=micro, rank=rank, world_size=world
            )
            first, second = positions[: micro // 2], positions[micro // 2 :]
            assert (second - first == global_batch // 2).all()


def test_ranks_read_their_own_lanes_where_the_world_divides_them() -> None:
    order = Order((4096,) * 40, seed=1)
    assert order.lanes == 64
    shards_of = []
    for rank in range(4):
        positions = np.concatenate(
            [
                micro_batch_positions(step, 0, global_batch=256, micro_batch=64, rank=rank, world_size=4)
                for step in range(100)
            ]
        )
        shards_of.append(set((order.rows(positions)[1] // 4096).tolist()))
    everything = sum(len(shards) for shards in shards_of)
    assert everything <= 40 + 4 * 16 + 4  # a shard is shared where lanes meet inside it, never read by all


def test_a_split_of_one_window_is_shuffled_as_a_whole() -> None:
    order = Order((500, 500), seed=0)
    assert order.lanes == 1
    first = order.rows(np.arange(100))[1]
    assert 30 < (first < 500).sum() < 70


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(Order((50, 50), seed).rows(np.arange(epoch * 100, epoch * 100 + 100))[1].tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_neighbours_of_the_index_part() -> None:
    """Positions that follow each other lie a third of the index apart on average, as two random samples do."""
    order = Order((4096,) * 3466, seed=3)
    rows = order.rows(np.arange(1 << 20))[1]
    assert np.abs(np.diff(rows)).mean() / order.samples == pytest.approx(1 / 3, rel=0.15)


@given(st.integers(1, 5000), st.integers(0, 2**63))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    index = np.arange(size)
    image = permute(index, np.full(size, size), np.full(size, key, np.uint64))
    assert sorted(image.tolist()) == index.tolist()


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=50, unique=True), st.randoms())
def test_the_ledger_ignores_the_order_and_tells_sets_apart(samples: list[int], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(samples, len(samples))
    assert ledger_hash(np.array(samples)) == ledger_hash(np.array(shuffled))
    assert ledger_hash(np.array(samples)) != ledger_hash(np.array([*samples, 2**40 + 1]))
    cut = random.randrange(len(samples) + 1)
    parts = ledger_hash(np.array(samples[:cut], np.int64)) + ledger_hash(np.array(samples[cut:], np.int64))
    assert parts % 2**40 == ledger_hash(np.array(samples))


def test_sample_seeds_depend_on_seed_epoch_and_sample_alone() -> None:
    epochs, rows = np.repeat(np.arange(20), 500), np.tile(np.arange(500), 20)
    seeds = sample_seeds(7, epochs, rows)
    assert len(set(seeds.tolist())) == len(seeds)
    assert sample_seeds(7, epochs[123:124], rows[123:124])[0] == seeds[123]
    assert not set(sample_seeds(8, epochs, rows).tolist()) & set(seeds.tolist())


@settings(max_examples=5)
@given(st.integers(0, 300 * 14_197_122 - 4096))
def test_an_order_over_imagenet_21k_opens_and_seeks_at_once(position: int) -> None:
    """No timing of the machine: three hundred epochs of lists would take gigabytes and hours."""
    began = time.process_time()
    order = Order((4096,) * 3466 + (386,), seed=0)
    rows = order.rows(np.arange(position, position + 4096))[1]
    assert len(set(rows.tolist())) > 4000  # an epoch's border may lie inside
    assert time.process_time() - began < 5


def test_a_day_of_1024_ranks_over_imagenet_21k() -> None:
    """300 images/s a rank for 24 hours: every epoch's windows and shards; one step by all ranks at the day's end."""
    order = Order(bench_order.shard_sizes(), seed=0)
    epochs = bench_order.DAY * bench_order.RANKS * 300 // bench_order.SAMPLES + 1
    assert epochs == 1870
    for epoch in range(epochs):
        bench_order.check_structure(order, epoch)
    step = epochs * bench_order.SAMPLES // bench_order.GLOBAL_BATCH - 1
    seen = [order.rows(bench_order.rank_positions(step, rank, bench_order.RANKS))[1] for rank in range(1024)]
    first = step * bench_order.GLOBAL_BATCH
    whole = order.rows(np.arange(first, first + bench_order.GLOBAL_BATCH))[1]
    assert sorted(np.concatenate(seen).tolist()) == sorted(whole.tolist())
