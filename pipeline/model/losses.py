"""The two training losses. Both are means over the batch, computed in float32 for any dtype of the model.

Letters of the shape suffixes: B batch, C classes.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def loss(
    kind: Literal["sigmoid", "softmax"], logits_BC: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Scalar float32 loss.

    ``targets`` are int64 class indices of shape B, or class weights of shape BC that sum to 1 (after mixup).
    ``label_smoothing`` s turns a target t into t (1 - s) + s / C.
    sigmoid: binary cross-entropy summed over the classes, as the ImageNet-21K models were trained.
    """
    logits_BC = logits_BC.float()
    if targets.is_floating_point():
        targets = targets.float()
    if kind == "softmax":
        return F.cross_entropy(logits_BC, targets, label_smoothing=label_smoothing)
    return (F.softplus(logits_BC).sum(-1) - _alignment(logits_BC, targets, label_smoothing)).mean()


def _alignment(logits_BC: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """The targets' part of binary cross-entropy, softplus(x) - t x, without a dense target if indices are given."""
    if targets.is_floating_point():
        aligned_B = (logits_BC * targets).sum(-1)
    else:
        aligned_B = logits_BC.gather(1, targets[:, None])[:, 0]
    if label_smoothing == 0.0:
        return aligned_B
    return (1.0 - label_smoothing) * aligned_B + label_smoothing * logits_BC.mean(-1)
