"""The optimizer: which parameters decay, and AdamW, LAMB or SGD over them."""

from typing import Any

import torch
from torch import nn

from pipeline.config.schema import OptimConfig
from pipeline.engine.lamb import Lamb

NEVER_DECAYED = ("cls_token", "pos_embed", "reg_token")


EMBEDDINGS = (*NEVER_DECAYED, "patch_embed")


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups of parameters that share ``weight_decay`` and ``lr_scale``, the factor of the learning rate.

    Kernels (weight matrices and the patch convolution, including the head) decay. Biases, norm scales, class token and
    position embedding don't: the split of AugReg (arXiv 2106.10270) and timm, where 50 of the 152 tensors of a B model
    decay. ``layer_decay`` gives two groups per layer, with the factors of :func:`layer_scale`. Call it before DeepSpeed
    partitions the parameters, which hides their shapes.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    if layer_decay == 1:
        found = {(1.0, True): [], (1.0, False): []}
    depth = 1 + max((int(name.split(".")[1]) for name, _ in model.named_parameters() if name.startswith("blocks.")))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and name not in NEVER_DECAYED
            found.setdefault((layer_scale(name, depth, layer_decay), decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
        for (scale, decays), parameters in found.items()
    ]


def layer_scale(name: str, depth: int, decay: float) -> float:
    """``decay`` to the power of the number of layers above the parameter: depth + 1 for the embeddings, 0 for the head.

    The last norm belongs to the last block, as in timm (param_groups_layer_decay; the idea is BEiT's).
    """
    first, *rest = name.split(".")
    if first in EMBEDDINGS:
        layer = 0
    elif first == "blocks":
        layer = int(rest[0]) + 1
    else:
        layer = depth if first == "norm" else depth + 1
    return decay ** (depth + 1 - layer)


def build(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over :func:`parameter_groups` with the peak learning rate; the loop sets the rate at each step.

    torch's AdamW multiplies the decay by the current learning rate, as AugReg's recipes do. LAMB's decay is part of the
    update that the trust ratio scales. SGD's decay is the L2 kind.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
    if config.kind == "lamb":
        return Lamb(groups, lr=config.lr, betas=(config.beta1, config.beta2))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
