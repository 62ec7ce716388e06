"""ZeRO's checks of all gradients before a step, in a few kernels instead of twenty per parameter.

DeepSpeed asks each gradient by itself whether it is finite, and for its norm: 4,500 small kernels per step of L/16, in
which an H100 is nearly idle for as long as half a forward and backward pass of 256 images takes (docs/results.md).
"""

import torch
import torch.distributed
from torch import Tensor

from pipeline.engine import internals
from pipeline.engine.internals import ZeroOptimizer


def use_fused_checks(optimizer: ZeroOptimizer) -> None:
    """Replace both checks of DeepSpeed's optimizer of ZeRO 1 and 2, without offload, by ones with the same results."""

    def overflow() -> Tensor:
        """Whether this rank's part of the gradients holds a non-finite element: a bool tensor of one element."""
        grads = internals.partition_gradients(optimizer)
        return ~torch.isfinite(_squares(grads, optimizer.device)).reshape(1)

    def norm(gradients: list[Tensor], _params: list[Tensor]) -> Tensor:
        """Of one group's gradients on all ranks, of which ``gradients`` are this rank's, and padding of zeros."""
        total = _squares(gradients, optimizer.device)
        torch.distributed.all_reduce(total, group=internals.data_parallel_group(optimizer))
        return total.sqrt().nan_to_num(nan=-1.0, posinf=-1.0)  # DeepSpeed's sign of a non-finite norm

    internals.replace_gradient_checks(optimizer, overflow, norm)


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Sum of the squares of all elements, float32."""
    if not tensors:
        return torch.zeros((), device=device)
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors], 2, dtype=torch.float32)
    return torch.stack(norms).square().sum()
