"""Deriving a model's configuration from a state dict with our names."""

import dataclasses
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config.fields import check_ranges
from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.model.vit import ARCHITECTURES, VisionTransformer

LAYER_SCALE = 1e-4  # initial value for the configuration if only the trained values are known (DeiT III's)
_PUBLISHED = ModelConfig()
_OURS = re.compile(  # names of tensors in any model of ours
    r"cls_token|pos_embed|reg_token|blocks\.\d+\.ls[12]\.gamma"
    r"|(patch_embed\.proj|norm|pre_logits\.fc|head|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Patch, width, depth and mlp, by the shapes (they don't show the number of heads). KeyError if it isn't a ViT."""
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
    heads: int | None,
    source: str,
    base: ModelConfig = _PUBLISHED,
) -> tuple[ModelConfig, int]:
    """The configuration and number of classes (0: no head) of a state dict read from ``source``.

    ``heads`` None: as in our variant of this width. ``base`` has what tensors don't show: GELU, epsilon, mean, ...
    Raises UserError if it isn't one of our variants, or lacks tensors, or has unknown ones.
    """
    try:
        found = sizes_of(state)
        entries = state["pos_embed"].shape[1]
    except KeyError as error:
        others = [name for name in sorted(state) if not _OURS.fullmatch(name)]
        instead = f", but {others[0]!r} ({len(others)} such)" if others else ""
        raise UserError(f"{source!r} has no tensor for {error}{instead}: choose a ViT as published") from None
    found |= {"heads": heads} if heads is not None else {}
    variant = next(
        (name for name, sizes in ARCHITECTURES.items() if found.items() <= dataclasses.asdict(sizes).items()), None
    )
    if variant is None:
        raise UserError(
            f"{source!r} is a ViT with {', '.join(f'{key} {value!r}' for key, value in found.items())} "
            f"(patch_embed.proj.weight has shape {list(state['patch_embed.proj.weight'].shape)}): none of "
            f"{', '.join(ARCHITECTURES)}; choose a B/16, B/32, L/16 or L/32"
        )
    grid = math.isqrt(entries)
    class_position = grid * grid != entries
    if class_position:
        grid = math.isqrt(entries - 1)
    if grid * grid != entries - class_position:
        raise UserError(
            f"{source!r} has pos_embed of {entries} entries, not a square grid: choose a model for square images"
        )
    scale = state.get("blocks.0.ls1.gamma")
    config = dataclasses.replace(
        base,
        variant=variant,
        image_size=grid * ARCHITECTURES[variant].patch,
        pre_logits="pre_logits.fc.weight" in state,
        layer_scale=0.0 if scale is None else base.layer_scale or LAYER_SCALE,
        class_position=class_position,
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
    )
    try:
        check_ranges(base, ModelConfig)
    except UserError as error:
        raise UserError(f"{source!r}: {error}") from error
    classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    check_tensors(state, config, classes, source)
    return config, classes


def plain(state: Mapping[str, Tensor], config: ModelConfig, form: str) -> dict[str, Tensor]:
    """Weights of a plain ViT that compute the same function, for formats that support nothing else.

    LayerScale is multiplied into the last matrix of its branch; a position embedding without an entry for the class
    token gets one of zeros. Raises UserError for registers, which ``form`` can't hold.
    """
    if config.registers:
        raise UserError(
            f"model.registers {config.registers} (reg_token) can't be stored in {form}: export to timm, safetensors or "
            "onnx"
        )
    result = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
    for block in range(ARCHITECTURES[config.variant].depth if config.layer_scale else 0):
        for scale, last in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            factor = state[f"blocks.{block}.{scale}.gamma"]
            weight, bias = f"blocks.{block}.{last}.weight", f"blocks.{block}.{last}.bias"
            result |= {weight: state[weight] * factor[:, None], bias: state[bias] * factor}
    if not config.class_position:
        result["pos_embed"] = torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)
    return result


def check_tensors(state: Mapping[str, Tensor], config: ModelConfig, classes: int, source: str) -> None:
    """Raises UserError if a state dict doesn't hold exactly the tensors of the model that ``config`` describes."""
    try:
        with torch.device("meta"):
            expected = VisionTransformer(config, classes or 1).state_dict()
    except UserError as error:  # its image size
        raise UserError(f"{source!r}: {error}") from error
    if not classes:
        del expected["head.weight"], expected["head.bias"]
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise UserError(
            f"{source!r} isn't a published ViT: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}; choose another file"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{source!r} has {name} of shape {list(tensor.shape)} instead of {list(expected[name].shape)}: "
                "choose another file"
            )
