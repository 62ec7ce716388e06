"""Mixup on a device batch (arXiv 1710.09412), the same for any number of ranks.

Position p of a global batch of G is mixed with position p + G/2 mod G, and pipeline.order puts both into the same
micro-batch, half a micro-batch apart: so no rank needs another's images. B batch, C channels or classes, H W pixels.
"""

import numpy as np
import torch


def mixup_lambda(seed: int, step: int, alpha: float) -> float:
    """max(l, 1 - l) with l ~ Beta(alpha, alpha): one a step, as AugReg does. 1 where ``alpha`` is 0."""
    if alpha == 0:
        return 1.0
    drawn = float(np.random.Generator(np.random.SFC64([seed, step, 0x6D6978])).beta(alpha, alpha))
    return max(drawn, 1 - drawn)


def mixup(x_BCHW: torch.Tensor, targets_BC: torch.Tensor, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each element times ``lam`` plus its partner, half a batch away, times 1 - ``lam``. B must be even."""
    assert len(x_BCHW) % 2 == 0
    half = len(x_BCHW) // 2
    return (
        lam * x_BCHW + (1 - lam) * x_BCHW.roll(half, 0),
        lam * targets_BC + (1 - lam) * targets_BC.roll(half, 0),
    )
