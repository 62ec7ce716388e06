"""Mixup and CutMix: one mix per step, and the same pairs for any number of ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.loader.order import micro_batch_positions
from pipeline.train.mixup import Box, Mix, cutmix_box, draw_mix, mix, mixup_lambda


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_weight_is_a_function_of_seed_and_step(seed: int, step: int, alpha: float) -> None:
    lam = mixup_lambda(seed, step, alpha)
    assert 0.5 <= lam <= 1
    assert lam == mixup_lambda(seed, step, alpha)


def test_without_alpha_nothing_is_mixed_and_weights_differ_by_step() -> None:
    assert mixup_lambda(0, 0, 0.0) == 1.0
    assert draw_mix(0, 0, 32, mixup=0.0, cutmix=0.0) == Mix(1.0)
    assert len({mixup_lambda(0, step, 0.5) for step in range(100)}) == 100
    mean = sum(mixup_lambda(0, step, 0.5) for step in range(2000)) / 2000
    # E max(l, 1 - l) of Beta(a, a) is 1/2 + 4^-a / (a B(a, a)): 0.5 + 1 / pi for a = 1/2
    assert mean == pytest.approx(0.8183, abs=0.01)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(8, 400), st.sampled_from([0.5, 1.0]))
def test_a_box_lies_inside_and_its_weight_is_the_area_left(seed: int, step: int, size: int, alpha: float) -> None:
    how = cutmix_box(seed, step, size, alpha)
    assert how == cutmix_box(seed, step, size, alpha)
    assert how.box is not None
    top, bottom, left, right = how.box
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    kept = torch.ones(size, size)
    kept[top:bottom, left:right] = 0
    assert how.weight == pytest.approx(kept.mean().item(), abs=1e-6)


def test_boxes_have_the_published_sizes_and_places() -> None:
    boxes = [cutmix_box(0, step, 224, 1.0).box for step in range(4000)]
    sides = torch.tensor([(b.bottom - b.top, b.right - b.left, b.top, b.left) for b in boxes if b]).double()
    inside = (sides[:, 2] > 0) & (sides[:, 2] + sides[:, 0] < 224) & (sides[:, 3] > 0) & (sides[:, 0] == sides[:, 1])
    assert inside.double().mean() == pytest.approx(1 / 6, abs=0.03)  # squares not cut off: E (1 - r)^2
    # side s = 224 sqrt(u), u uniform; about a uniform centre, cut off at both ends: E rows = 224 E[r - r^2 / 4]
    # with r = sqrt(u): E r = 2/3, E r^2 = 1/2
    assert sides[:, 0].mean() == pytest.approx(224 * (2 / 3 - 1 / 8), rel=0.02)
    assert sides[:, 1].mean() == pytest.approx(224 * (2 / 3 - 1 / 8), rel=0.02)


def test_with_both_each_step_has_one_or_the_other_half_of_the_time() -> None:
    drawn = [draw_mix(0, step, 32, mixup=0.8, cutmix=1.0) for step in range(2000)]
    assert sum(how.box is None for how in drawn) / 2000 == pytest.approx(0.5, abs=0.04)
    for step, how in enumerate(drawn[:50]):
        alone = {"mixup": 0.8, "cutmix": 0.0} if how.box is None else {"mixup": 0.0, "cutmix": 1.0}
        assert draw_mix(0, step, 32, **alone) == how


def test_cutmix_of_two_images_by_hand() -> None:
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    x, t = mix(images, torch.eye(2), Mix(1 - 6 / 16, Box(1, 3, 0, 3)))
    expected = torch.zeros(4, 4)
    expected[1:3, 0:3] = 1
    assert torch.equal(x[0], expected.expand(3, 4, 4))
    assert torch.equal(x[1], 1 - expected.expand(3, 4, 4))
    assert t.tolist() == [[0.625, 0.375], [0.375, 0.625]]
    assert images[0].sum() == 0


@pytest.mark.parametrize("how", [Mix(0.7), Mix(1 - 6 / 64, Box(0, 2, 5, 8))])
@pytest.mark.parametrize(("world", "micro"), [(1, 16), (1, 4), (2, 4), (4, 2), (4, 4), (8, 2)])
def test_the_mixed_batch_is_the_same_for_any_world_size(world: int, micro: int, how: Mix) -> None:
    size = 16
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 8, 8, generator=generator)
    targets = torch.rand(size, 5, generator=generator)
    expected_images = how.weight * images + (1 - how.weight) * images.roll(size // 2, 0)
    if how.box is not None:
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[0:2, 5:8] = True
        expected_images = torch.where(inside, images.roll(size // 2, 0), images)
    expected_targets = how.weight * targets + (1 - how.weight) * targets.roll(size // 2, 0)
    seen = []
    for rank in range(world):
        for part in range(size // (world * micro)):
            mine = micro_batch_positions(0, part, global_batch=size, micro_batch=micro, rank=rank, world_size=world)
            x, t = mix(images[mine], targets[mine], how)
            assert torch.equal(x, expected_images[mine])
            assert torch.equal(t, expected_targets[mine])
            seen += mine.tolist()
    assert sorted(seen) == list(range(size))
