"""Mixup: one weight a step, and the same pairs for any number of ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.mixing import mixup, mixup_lambda
from pipeline.order import micro_batch_positions


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_weight_is_a_function_of_seed_and_step(seed: int, step: int, alpha: float) -> None:
    lam = mixup_lambda(seed, step, alpha)
    assert 0.5 <= lam <= 1
    assert lam == mixup_lambda(seed, step, alpha)


def test_without_alpha_nothing_is_mixed_and_weights_differ_by_step() -> None:
    assert mixup_lambda(0, 0, 0.0) == 1.0
    assert len({mixup_lambda(0, step, 0.5) for step in range(100)}) == 100
    mean = sum(mixup_lambda(0, step, 0.5) for step in range(2000)) / 2000
    # E max(l, 1 - l) of Beta(a, a) is 1/2 + 4^-a / (a B(a, a)): 0.5 + 1 / pi for a = 1/2
    assert mean == pytest.approx(0.8183, abs=0.01)


@pytest.mark.parametrize(("world", "micro"), [(1, 16), (1, 4), (2, 4), (4, 2), (4, 4), (8, 2)])
def test_the_mixed_batch_is_the_same_for_any_world_size(world: int, micro: int) -> None:
    size, lam = 16, 0.7
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 2, 2, generator=generator)
    targets = torch.rand(size, 5, generator=generator)
    expected_images = lam * images + (1 - lam) * images.roll(size // 2, 0)
    expected_targets = lam * targets + (1 - lam) * targets.roll(size // 2, 0)
    seen = []
    for rank in range(world):
        for part in range(size // (world * micro)):
            mine = micro_batch_positions(0, part, global_batch=size, micro_batch=micro, rank=rank, world_size=world)
            x, t = mixup(images[mine], targets[mine], lam)
            assert torch.equal(x, expected_images[mine])
            assert torch.equal(t, expected_targets[mine])
            seen += mine.tolist()
    assert sorted(seen) == list(range(size))
