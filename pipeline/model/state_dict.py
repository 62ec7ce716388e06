"""What a state dict with our names says about the model it belongs to."""

import dataclasses
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.model.vit import ARCHITECTURES, VisionTransformer


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Patch, width, depth and mlp, which the shapes give away; the number of heads doesn't show. KeyError if no ViT."""
    patch_weight = state["patch_embed.proj.weight"]
    blocks = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "patch": patch_weight.shape[-1],
        "width": patch_weight.shape[0],
        "depth": len(blocks),
        "mlp": state["blocks.0.mlp.fc1.weight"].shape[0],
    }


def model_config(
    state: Mapping[str, Tensor],
    *,
    heads: int,
    source: str,
    gelu: str = "tanh",
    norm_eps: float = 1e-6,
) -> tuple[ModelConfig, int]:
    """The configuration and number of classes (0: no head) of a state dict read from ``source``.

    Raises UserError where it isn't one of our variants, or lacks or has more tensors than a ViT of ours.
    """
    try:
        found = sizes_of(state) | {"heads": heads}
    except KeyError as error:
        raise UserError(f"{source!r} has no tensor for {error}: it holds no ViT in a known layout") from None
    variant = next((name for name, sizes in ARCHITECTURES.items() if dataclasses.asdict(sizes) == found), None)
    if variant is None:
        raise UserError(
            f"{source!r} is a ViT with {', '.join(f'{key} {value}' for key, value in found.items())}: none of "
            f"{', '.join(ARCHITECTURES)}; choose a B/16, B/32, L/16 or L/32"
        )
    patches = state["pos_embed"].shape[1] - 1
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise UserError(f"{source!r} has {patches} patch positions, no square grid: choose a model of square images")
    if gelu not in ("tanh", "exact"):
        raise UserError(f"{source!r} has activation {gelu!r}, which is no GELU: choose a ViT as published")
    config = ModelConfig(
        variant=variant,
        image_size=grid * ARCHITECTURES[variant].patch,
        pre_logits="pre_logits.fc.weight" in state,
        gelu="tanh" if gelu == "tanh" else "exact",
        norm_eps=norm_eps,
    )
    classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    check_tensors(state, config, classes, source)
    return config, classes


def check_tensors(state: Mapping[str, Tensor], config: ModelConfig, classes: int, source: str) -> None:
    """Raises UserError where a state dict isn't the whole of the model that ``config`` describes."""
    with torch.device("meta"):
        expected = VisionTransformer(config, classes or 1).state_dict()
    if not classes:
        del expected["head.weight"], expected["head.bias"]
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise UserError(
            f"{source!r} doesn't hold a ViT as published: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}; choose another file"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{source!r} has {name} of shape {list(tensor.shape)} instead of {list(expected[name].shape)}: "
                "choose another file"
            )
