"""ZeRO's checks of all gradients before a step, in a few kernels instead of twenty per parameter.

DeepSpeed checks each gradient separately for being finite, and for its norm: 4,500 small kernels per step of L/16,
during which an H100 is nearly idle for half the time of a forward and backward pass of 256 images (docs/results.md).
"""

import torch
import torch.distributed
from torch import Tensor

from pipeline.engine import internals
from pipeline.engine.internals import ZeroOptimizer


def use_fused_checks(optimizer: ZeroOptimizer) -> None:
    """Replace both checks of DeepSpeed's ZeRO 1 and 2 optimizer (without offload) with ones of equal results."""

    def overflow() -> Tensor:
        """Whether this rank's part of the gradients holds a non-finite element: a bool tensor of one element."""
        grads = internals.partition_gradients(optimizer)
        return ~torch.isfinite(_squares(grads, optimizer.device)).reshape(1)

    def norm(gradients: list[Tensor], _params: list[Tensor]) -> Tensor:
        """Norm of one group's gradients on all ranks; ``gradients``: this rank's, with a padding of zeros."""
        total = _squares(gradients, optimizer.device)
        torch.distributed.all_reduce(total, group=internals.data_parallel_group(optimizer))
        return total.sqrt().nan_to_num(nan=-1.0, posinf=-1.0)  # -1: DeepSpeed's value for a non-finite norm

    internals.replace_gradient_checks(optimizer, overflow, norm)


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Sum of the squares of all elements, float32."""
    if not tensors:
        return torch.zeros((), device=device)
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors], 2, dtype=torch.float32)
    return torch.stack(norms).square().sum()
