"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) on a device batch, the same for any number of ranks.

Position p of a global batch of G is mixed with position p + G/2 mod G, and pipeline.loader.order puts both into the
same micro-batch, half a micro-batch apart, so no rank needs another's images.
B batch, C channels or classes, H W pixels.
"""

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Box(NamedTuple):
    """A box of an image: first and last (exclusive) row and column."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """The mix of one step, the same for all of its images."""

    weight: float  # of an image's own label
    box: Box | None = None  # taken from the partner (CutMix); None: the whole image is blended (mixup)


NOTHING = Mix(1.0)


def draw_mix(seed: int, step: int, size: int, *, mixup: float, cutmix: float) -> Mix:
    """The mix of one step, as a function of (seed, step) and the settings only.

    ``mixup``, ``cutmix``: alpha of the Beta distributions; 0: off. With both on, one of them, each with probability
    1/2. ``size``: side of the images in pixels.
    """
    switch = np.random.Generator(np.random.SFC64([seed, step, 0x737769])).random()
    if cutmix > 0 and (mixup == 0 or switch < 0.5):
        return cutmix_box(seed, step, size, cutmix)
    return Mix(mixup_lambda(seed, step, mixup))


def mixup_lambda(seed: int, step: int, alpha: float) -> float:
    """max(l, 1 - l) with l ~ Beta(alpha, alpha): one per step, as AugReg does. 1 when ``alpha`` is 0."""
    if alpha == 0:
        return 1.0
    drawn = float(np.random.Generator(np.random.SFC64([seed, step, 0x6D6978])).beta(alpha, alpha))
    return max(drawn, 1 - drawn)


def cutmix_box(seed: int, step: int, size: int, alpha: float) -> Mix:
    """One box per step with a fraction 1 - l of the area, l ~ Beta(alpha, alpha), centred on a uniformly drawn pixel.

    The box is clipped at the image's border, and the weight is the fraction of the image outside the clipped box.
    """
    random = np.random.Generator(np.random.SFC64([seed, step, 0x637574]))
    side = int(size * math.sqrt(1 - random.beta(alpha, alpha)))
    row, column = (int(drawn) for drawn in random.integers(size, size=2))
    box = Box(
        max(row - side // 2, 0),
        min(row + (side + 1) // 2, size),
        max(column - side // 2, 0),
        min(column + (side + 1) // 2, size),
    )
    return Mix(1 - (box.bottom - box.top) * (box.right - box.left) / size**2, box)


def mix(x_BCHW: Tensor, targets_BC: Tensor, how: Mix) -> tuple[Tensor, Tensor]:
    """Mix each image and target with its partner's, half a batch away. B must be even; ``x_BCHW`` isn't changed."""
    assert len(x_BCHW) % 2 == 0
    half = len(x_BCHW) // 2
    targets_BC = how.weight * targets_BC + (1 - how.weight) * targets_BC.roll(half, 0)
    if how.box is None:
        return how.weight * x_BCHW + (1 - how.weight) * x_BCHW.roll(half, 0), targets_BC
    top, bottom, left, right = how.box
    mixed_BCHW = x_BCHW.clone()
    mixed_BCHW[..., top:bottom, left:right] = x_BCHW.roll(half, 0)[..., top:bottom, left:right]
    return mixed_BCHW, targets_BC
