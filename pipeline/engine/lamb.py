"""LAMB (arXiv 1904.00962), correct under ZeRO: trust ratios are those of whole tensors over all ranks.

DeepSpeed's FusedLamb treats ZeRO's flat partition of many tensors as one tensor. This one knows which part of which
tensor is where. The update is that of apex's FusedLAMB and timm's Lamb: weight decay inside the update, bias
correction, and no trust ratio for tensors that don't decay.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

EPS = 1e-6  # apex's and timm's default


@dataclass(frozen=True)
class Pieces:
    """The parts of whole tensors that one rank's flat tensor holds."""

    tensors: int  # whole tensors in the flat tensor's group, on all ranks
    held: tuple[tuple[int, int, int], ...]  # on this rank: which tensor, first element, number of elements


class Lamb(torch.optim.Optimizer):
    """LAMB. Each parameter is a whole tensor, unless :meth:`follow_zero` has set which parts it holds."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = EPS):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.pieces: dict[Tensor, Pieces] = {}
        self.sum_over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums

    def follow_zero(
        self, pieces: dict[Tensor, Pieces], group: torch.distributed.ProcessGroup, device: torch.device
    ) -> None:
        """Treat the parameters as flat tensors that hold ``pieces`` from now on; ``group``'s ranks hold the others.

        ``device``: for the group's communication. Offloaded partitions are in host memory.
        """

        def sum_over_ranks(sums: Tensor) -> Tensor:
            moved = sums.to(device)
            torch.distributed.all_reduce(moved, group=group)
            return moved.to(sums.device)

        self.pieces = pieces
        self.sum_over_ranks = sum_over_ranks

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each parameter that has a gradient; collective under ZeRO."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if "exp_avg" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = state["exp_avg_sq"].sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        update = state["exp_avg"].div(1 - beta1**step).div_(scale)
        if group["weight_decay"] != 0:
            update.add_(parameter, alpha=group["weight_decay"])
            self._trust(parameter, update)
        parameter.add_(update, alpha=-group["lr"])

    def _trust(self, parameter: Tensor, update: Tensor) -> None:
        """Multiply each tensor's part of ``update`` by |tensor| / |update|; by 1 if either is 0."""
        pieces = self.pieces.get(parameter, Pieces(1, ((0, 0, parameter.numel()),)))
        values, updates = (_cut(tensor, pieces) for tensor in (parameter, update))
        slots = [slot for slot, _, _ in pieces.held]
        squares = torch.zeros(2, pieces.tensors, device=parameter.device)
        if slots:
            squares[0, slots] = torch.stack(torch._foreach_norm(values)).square()
            squares[1, slots] = torch.stack(torch._foreach_norm(updates)).square()
        weights, steps = self.sum_over_ranks(squares).sqrt()
        ratios = torch.where((weights > 0) & (steps > 0), weights / steps, 1.0)
        if slots:
            torch._foreach_mul_(updates, list(ratios[slots].unbind()))


def _cut(tensor: Tensor, pieces: Pieces) -> list[Tensor]:
    flat = tensor.detach().view(-1)
    return [flat[start : start + length] for _, start, length in pieces.held]
