"""Starting a model from another's weights: fine-tuning at another resolution and with other classes.

Letters of the shape suffixes: L tokens (the class token first), D width, G patches along a side of the image.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.model.initialisation import zero_head
from pipeline.model.state_dict import sizes_of
from pipeline.model.vit import ARCHITECTURES, VisionTransformer, grid_size


@torch.no_grad()
def transfer(parent_state: Mapping[str, Tensor], model: VisionTransformer) -> None:
    """Load ``parent_state`` (our names, any float dtype) into ``model``, in place, except what fine-tuning replaces.

    The position embedding is resized to the model's grid by model.position_resize. The parent's head, including
    pre_logits, is dropped; the new head starts at zero (section 3.2 of the paper), or keeps its random weights with
    model.initialisation deit3, as DeiT III's does. Raises UserError if the architectures differ.
    """
    if model.config.pre_logits:
        raise UserError(
            "model.pre_logits True can't be fine-tuned: a new zero-initialised head replaces the parent's head and "
            "pre_logits; set model.pre_logits False"
        )
    _check_same_architecture(parent_state, model)
    own = model.state_dict()
    state = {name: parent_state[name] for name in own if not name.startswith("head.")}
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"parent's tensor {broken[0]!r} has non-finite values ({len(broken)} such tensors): its training diverged "
            "or its file is damaged; name another parent"
        )
    config = model.config
    state["pos_embed"] = resize_pos_embed(
        state["pos_embed"], grid_size(config), config.position_resize, class_position=config.class_position
    )
    model.load_state_dict(state, strict=False)
    if config.initialisation == "vit":
        zero_head(model)


def resize_pos_embed(
    pos_embed_1LD: Tensor,
    grid: int,
    how: Literal["bilinear", "bicubic"] = "bilinear",
    *,
    class_position: bool = True,
) -> Tensor:
    """Position embedding for ``grid`` x ``grid`` patches, float32, with the class token's entry (if any) unchanged.

    ``bilinear``: with aligned corners, which equals the scipy.ndimage.zoom(order=1) of
    google-research/vision_transformer and big_vision to 4e-6. ``bicubic``: corners not aligned, as
    facebookresearch/deit does. The same grid returns the same values. Raises UserError if the entries are not a square
    grid.
    """
    entries, first = pos_embed_1LD.shape[1], int(class_position)
    old = math.isqrt(entries - first)
    if old * old != entries - first:
        raise UserError(
            f"pos_embed has {entries} entries, not {'a class token and ' if first else ''}a square grid: "
            "start from a model with square images"
        )
    pos_embed_1LD = pos_embed_1LD.float()
    if old == grid:
        return pos_embed_1LD
    patches_1DGG = pos_embed_1LD[:, first:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized_1DGG = F.interpolate(patches_1DGG, size=(grid, grid), mode=how, align_corners=how == "bilinear")
    return torch.cat([pos_embed_1LD[:, :first], resized_1DGG.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _check_same_architecture(parent_state: Mapping[str, Tensor], model: VisionTransformer) -> None:
    variant = model.config.variant
    try:
        parent = sizes_of(parent_state)
    except KeyError as error:
        raise UserError(f"parent has no tensor {error}: it isn't a Vision Transformer with our names") from None
    ours = {name: getattr(ARCHITECTURES[variant], name) for name in parent}
    if parent == ours:
        missing = sorted(set(model.state_dict()) - set(parent_state) - {"head.weight", "head.bias"})
        if missing:
            raise UserError(f"parent has no tensor {missing[0]!r} ({len(missing)} missing): its file is incomplete")
        return
    differing = ", ".join(
        f"{name} {parent[name]} instead of {own}" for name, own in ours.items() if own != parent[name]
    )
    fitting = [name for name, sizes in ARCHITECTURES.items() if parent.items() <= dataclasses.asdict(sizes).items()]
    remedy = f"use recipe {fitting[0]}" if fitting else f"choose a parent of {', '.join(ARCHITECTURES)}"
    raise UserError(f"model.variant {variant} does not fit the parent, which has {differing}: {remedy}")
