"""The optimizer: which parameters decay, and torch's AdamW or SGD over them."""

from typing import Any

import torch
from torch import nn

from pipeline.config import OptimConfig

NEVER_DECAYED = ("cls_token", "pos_embed")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: the kernels (weight matrices and the patch convolution, head included), which decay, and the rest.

    Biases, norm scales, class token and position embedding don't: the split of AugReg (arXiv 2106.10270) and timm,
    where 50 of the 152 tensors of a B model decay. Call it before DeepSpeed partitions the parameters: it hides shapes.
    """
    kernels: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name not in NEVER_DECAYED
            (kernels if decays else rest).append(parameter)
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def build(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """torch's own optimizer over :func:`parameter_groups`, its learning rate at the peak; the loop sets it each step.

    torch's AdamW multiplies the decay by the current learning rate, as AugReg's recipes do. SGD's decay is the L2 kind.
    """
    groups = parameter_groups(model, config.weight_decay)
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
