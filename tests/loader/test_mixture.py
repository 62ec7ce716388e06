"""Several datasets by weight, and parts of datasets: the arithmetic, and on real shards."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.dataset import format as dataset_format
from pipeline.dataset import split as splits
from pipeline.dataset.joined_split import JoinedSplit, open_split
from pipeline.dataset.split import Choice
from pipeline.loader.batches import train_batches
from pipeline.loader.mixture import BLOCK, Mixture, sampling, shares
from pipeline.loader.order import LANES, Order, micro_batch_positions
from pipeline.loader.transforms import TrainTransform
from tests.helpers.jobs import audit, job
from tests.helpers.ranks import run_ranks

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple)
LARGE = st.lists(st.integers(100, 5000), min_size=4, max_size=6).map(tuple)
WEIGHTS = st.lists(st.floats(0.01, 1), min_size=1, max_size=5)
DEEP = BLOCK * LANES  # positions of a block of all streams


def mixture(sizes: list[tuple[int, ...]], weights: list[float], seed: int = 0) -> Mixture:
    made = sampling(sizes, seed, weights)
    assert isinstance(made, Mixture)
    return made


@given(WEIGHTS)
def test_shares_are_the_weights_to_the_nearest_part(weights: list[float]) -> None:
    parts = shares(weights)
    assert sum(parts) == BLOCK
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - weight / sum(weights) * BLOCK) < 1


INFINITE = float("inf")


@pytest.mark.parametrize(
    "weights", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, INFINITE], [INFINITE, 1.0], [9000.0, 1.0]]
)
def test_weights_that_give_no_share_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"data\.weights"):
        shares(weights)
    with pytest.raises(UserError, match="has 2 numbers but"):
        sampling([(5,), (6,), (7,)], 0, weights)


@settings(max_examples=8)
@given(WEIGHTS, st.integers(0, 3), st.integers(0, 5))
def test_each_data_sets_positions_come_once_in_lanes_and_shares(weights: list[float], block: int, seed: int) -> None:
    order = mixture([(30,), *[(9000, 9000)] * (len(weights) - 1)], weights, seed)  # a small one, and large ones
    positions = np.arange(block * DEEP, (block + 1) * DEEP)
    which, own = order.own_positions(positions)
    assert (own % LANES == positions % LANES)[which > 0].all()
    for number, share in enumerate(order.shares):
        wanted = np.arange(block * share * LANES, (block + 1) * share * LANES)
        assert (np.sort(own[which == number]) == wanted).all()
        for stream in (0, 17, LANES - 1):
            assert (which[stream::LANES] == number).sum() == share


@settings(max_examples=20)
@given(WEIGHTS, st.integers(1, 3 * DEEP), st.integers(0, 5))
def test_each_data_set_goes_through_its_own_positions_in_order(weights: list[float], end: int, seed: int) -> None:
    order = mixture([(30,), *[(9000, 9000)] * (len(weights) - 1)], weights, seed)
    which, own = order.own_positions(np.arange(end))
    for number in range(len(weights)):
        mine = own[which == number]
        if number == 0:  # a small one: over all streams
            assert (mine == np.arange(len(mine))).all()
            continue
        counts = []
        for stream in range(LANES):
            depths = mine[mine % LANES == stream] // LANES
            assert (depths == np.arange(len(depths))).all()
            counts.append(len(depths))
        assert max(counts) - min(counts) <= 16  # in step: shuffled over a whole block they would drift further apart


@settings(max_examples=10)
@given(st.lists(LARGE, min_size=1, max_size=4), st.integers(0, 5), st.data())
def test_each_epoch_of_each_data_set_holds_each_sample_once(
    sizes: list[tuple[int, ...]], seed: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 1), min_size=len(sizes), max_size=len(sizes)))
    order = mixture(sizes, weights, seed)
    epochs, rows = order.rows(np.arange(DEEP))
    first = 0
    for part, whole in zip(order.orders, order.whole_epochs(DEEP), strict=True):
        assert whole > 0
        mine = (rows >= first) & (rows < first + part.samples)
        counts = np.zeros((int(epochs[mine].max()) + 1, part.samples), int)
        np.add.at(counts, (epochs[mine], rows[mine] - first), 1)
        assert (counts[:whole] == 1).all()
        assert (counts <= 1).all()
        first += part.samples


@settings(max_examples=30)
@given(
    st.lists(SIZES, min_size=2, max_size=3), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 4), st.integers(0, 10**7),
    st.data(),
)  # fmt: skip
def test_any_world_size_and_resume_sees_the_same_samples(
    sizes: list[tuple[int, ...]], world: int, passes: int, step: int, data: st.DataObject
) -> None:
    order = mixture(sizes, data.draw(st.lists(st.floats(0.1, 1), min_size=len(sizes), max_size=len(sizes))))
    micro = 6
    size = world * micro * passes
    epochs, rows = order.rows(np.arange(step * size, (step + 1) * size))
    seen = {}
    for rank in range(world):
        for part in range(passes):  # each by itself, as after a resume
            positions = micro_batch_positions(
                step, part, global_batch=size, micro_batch=micro, rank=rank, world_size=world
            )
            for position, epoch, row in zip(positions, *order.rows(positions), strict=True):
                seen[int(position) - step * size] = (epoch, row)
    assert [seen[place] for place in range(size)] == list(zip(epochs, rows, strict=True))


def test_the_shares_hold_in_every_stretch() -> None:
    order = mixture([(1000,), (10,), (500, 500)], [0.7, 0.1, 0.2])
    for start in (0, 123_456, 10**9):
        which, _ = order.own_positions(np.arange(start, start + 4096))
        found = np.bincount(which, minlength=3) / 4096
        # a sample of 4,096 without replacement: five standard deviations of the binomial, which spreads more
        assert (np.abs(found - [0.7, 0.1, 0.2]) < 5 * np.sqrt(np.array([0.21, 0.09, 0.16]) / 4096)).all()


def test_rare_samples_come_evenly_not_in_all_streams_at_once() -> None:
    order = sampling([(100_000,), (5_000,)], 0, [0.995, 0.005])
    assert isinstance(order, Mixture)
    which, _ = order.own_positions(np.arange(4096 * 64))
    rare = which.reshape(-1, 4096).sum(axis=1)  # of each 4096 positions, 20 if it were perfectly even
    assert rare.sum() == 64 * 20
    assert 10 <= rare.min() <= rare.max() <= 30


def test_whole_epochs_are_those_of_whole_blocks() -> None:
    order = mixture([(1000,), (10,), (50_000, 50_000)], [0.7, 0.1, 0.2])
    block = 4096 * 64
    which, _ = order.own_positions(np.arange(2 * block))
    seen = [np.bincount(which[: blocks * block], minlength=3) // [1000, 10, 100_000] for blocks in range(3)]
    assert order.whole_epochs(block - 1) == [0, 0, 0]
    assert order.whole_epochs(2 * block - 1) == order.whole_epochs(block) == seen[1].tolist()
    assert order.whole_epochs(2 * block) == seen[2].tolist()


def test_near_shards_are_those_that_the_next_positions_take_from() -> None:
    sizes = (4096,) * 40
    for order in (Order(sizes, 3), mixture([sizes, (4096,) * 70], [0.5, 0.5], 3), Order((100, 50, 70), 1)):
        shard_of = np.repeat(np.arange(110 if isinstance(order, Mixture) else len(order.shard_samples)), 4096)
        if order.samples == 220:
            shard_of = np.repeat(np.arange(3), (100, 50, 70))
        for rank, start in ((3, 0), (0, order.samples - 700)):  # the second near the border of two epochs
            positions = start - start % 64 + rank + 64 * np.arange(32)
            near = order.shards_near(positions)
            assert len(set(near.tolist())) == len(near)
            for later in (0, 10):  # micro-batches of the same rank, in these windows or the next
                rows = order.rows(positions + later * 32 * 64)[1]
                assert set(shard_of[rows].tolist()) <= set(near.tolist())
            assert len(near) <= (3 if order.samples == 220 else 26)  # of windows of four shards: not of all


@pytest.fixture(scope="module")
def both(digits: Path) -> JoinedSplit:
    """The same dataset twice: for the loader, its shards are in two places."""
    return open_split([str(digits), str(digits)], "train")


def content(split: JoinedSplit, weights: list[float], world: int, steps: int = 3) -> list[tuple[int, int, int, str]]:
    found = []
    for rank in range(world):
        for batch in train_batches(
            split, TrainTransform(16), seed=4, global_batch=48, micro_batch=4, rank=rank, world_size=world, workers=0,
            start_step=0, stop_step=steps, weights=weights,
        ):  # fmt: skip
            for row, label, image in zip(
                batch.samples_B.tolist(), batch.labels_B.tolist(), batch.images_BHWC.numpy(), strict=True
            ):
                found.append((batch.step, row, label, hashlib.sha256(image.tobytes()).hexdigest()))
    return sorted(found)


@pytest.mark.parametrize("weights", [[], [0.25, 0.75]])
def test_batches_of_two_data_sets_are_the_same_for_any_world_size(both: JoinedSplit, weights: list[float]) -> None:
    whole = content(both, weights, 1)
    half = len(both) // 2
    assert {row >= half for _, row, _, _ in whole} == {True, False}
    for _, row, label, _ in whole:
        assert label == both.label[row] == both.label[row % half]
        assert both.read(row) == both.read(row % half)
        assert both.place(row)[1] == both.place(row % half)[1]
    assert content(both, weights, 3) == content(both, weights, 4) == whole
    assert both.sample_keys()[:half] == both.sample_keys()[half:]


def test_without_weights_two_data_sets_are_one(both: JoinedSplit, digits: Path) -> None:
    order = sampling(both.samples, 7)
    assert isinstance(order, Order)
    assert order.samples == len(both) == 2 * len(open_split(digits, "train"))


def test_other_classes_are_refused(digits: Path, seven_digits: Path) -> None:
    with pytest.raises(UserError, match=r"another class map \(7 classes.*\(10, "):
        open_split([str(digits), str(seven_digits)], "train")


def test_a_part_is_the_first_of_the_index_and_of_some_classes(digits: Path) -> None:
    whole = open_split(digits, "train")
    wnids = dataset_format.read_classes(digits)["wnid"].to_pylist()
    tenth = open_split(digits, "train", choice=Choice(percent=10))
    assert len(tenth) == -(-len(whole) // 10)
    assert [tenth.read(row) for row in range(len(tenth))] == [whole.read(row) for row in range(len(tenth))]
    assert sum(map(sum, tenth.samples)) == len(tenth)
    assert len(tenth.shards) < len(whole.shards)  # the others needn't even be there

    assert splits._share(16.1, 1000) == 161  # whose nearest float is a little more

    chosen = Choice(tuple(wnids[label] for label in (2, 5)), 50)
    some = open_split(digits, "train", choice=chosen)
    rows = np.flatnonzero(np.isin(whole.label, [2, 5]))
    rows = rows[: -(-len(rows) // 2)]
    assert some.label.tolist() == whole.label[rows].tolist()
    assert [some.read(row) for row in range(len(some))] == [whole.read(row) for row in rows.tolist()]
    assert some.sample_keys() == [whole.sample_keys()[row] for row in rows.tolist()]
    assert len({whole.digest, tenth.digest, some.digest}) == 3
    assert some.digest == open_split(digits, "train", choice=chosen).digest

    for choice, message in (
        (Choice(percent=0), "data.percent 0"),
        (Choice(percent=101), "data.percent 101"),
        (Choice(("n00000000",)), "n00000000"),
    ):
        with pytest.raises(UserError, match=message):
            open_split(digits, "train", choice=choice)


def test_a_job_on_parts_of_two_data_sets_by_weight_is_audited(digits: Path, tmp_path: Path) -> None:
    wnids = dataset_format.read_classes(digits)["wnid"].to_pylist()
    (tmp_path / "classes.txt").write_text("\n".join(wnids[:3]))
    run = tmp_path / "run"
    options = (
        "--data.train", digits, digits, "--data.weights", 0.3, 0.7, "--data.percent", 10, "--data.classes",
        tmp_path / "classes.txt", "--data.eval-split", "val",
    )  # fmt: skip
    (done, _) = run_ranks(2, ("-m", *job(run, digits, *options, steps=12)), tmp_path / "log", 100)
    classes = np.isin(open_split(digits, "val").label, [0, 1, 2]).sum()
    assert f"evaluation: {classes} samples" in done.output
    code, output = audit(run)
    assert code == 0, output
    assert "12 steps of 16 samples, 0 repeated after a resume" in output
    (tmp_path / "classes.txt").write_text("\n".join(wnids[:2]))
    code, output = audit(run)
    assert code == 2
    assert "the run was trained on" in output
