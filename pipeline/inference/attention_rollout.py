"""Attention roll-out (Abnar & Zuidema, arXiv 2005.00928): how much each patch contributes to the class token.

Letters of the shape suffixes: B batch, N heads, Q queries (all tokens, or the class token alone in the last block),
L tokens (the class token first), K width of a head, G patches along a side, H W pixels, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.imaging.jpeg import Image
from pipeline.model.vit import Attention, Block, QueryKeyValue, VisionTransformer

Map = npt.NDArray[np.float32]  # GG or HW, shares that sum to one


@torch.inference_mode()
def attentions(model: VisionTransformer, x_BCHW: Tensor) -> list[Tensor]:
    """The attention weights of each block, A_BNQL, whose rows sum to one; computed from queries and keys."""
    found: list[Tensor] = []

    def hook(qkv: QueryKeyValue, inputs: tuple[Tensor, int], _: Any) -> None:
        x_BLD, queries = inputs
        q_DD, k_DD, _ = qkv.weight.chunk(3)
        q_D, k_D, _ = qkv.bias.chunk(3)
        projected = (F.linear(x_BLD[:, :queries], q_DD, q_D), F.linear(x_BLD, k_DD, k_D))
        q_BNQK, k_BNLK = (part.reshape(*part.shape[:2], qkv.heads, -1).transpose(1, 2).float() for part in projected)
        found.append((q_BNQK @ k_BNLK.transpose(-1, -2) / q_BNQK.shape[-1] ** 0.5).softmax(-1))

    hooks = []
    for block in model.blocks:
        assert isinstance(block, Block)
        assert isinstance(block.attn, Attention)
        hooks.append(block.attn.qkv.register_forward_hook(hook))
    try:
        model(x_BCHW)
    finally:
        for handle in hooks:
            handle.remove()
    return found


def rollout(attention: Sequence[Tensor], registers: int = 0) -> Tensor:
    """Each patch's share in the class token, BGG, summing to one.

    Equation 1 of the paper: heads are averaged, mixed half and half with the identity (the residual), and multiplied.
    """
    batch, _, _, tokens = attention[0].shape
    share_BLL = torch.eye(tokens, dtype=torch.float64).expand(batch, -1, -1)
    for a_BNQL in attention:
        a_BQL = a_BNQL.mean(1).double().cpu()
        mixed_BQL = 0.5 * a_BQL + 0.5 * torch.eye(tokens, dtype=torch.float64)[: a_BQL.shape[1]]
        share_BLL = mixed_BQL @ share_BLL
    patches_BL = share_BLL[:, 0, 1 + registers :]
    side = round(patches_BL.shape[1] ** 0.5)
    return (patches_BL / patches_BL.sum(-1, keepdim=True)).reshape(batch, side, side).float()


def draw(image_HWC: Image, map_GG: Map, title: str, answers: Sequence[tuple[str, float]], path: Path) -> None:
    """Write a PNG with the model's input image, its attention roll-out, and its predictions (name, probability)."""
    from matplotlib.figure import Figure  # slow to import and rarely needed

    from pipeline.core import plotting

    size = (image_HWC.shape[1], image_HWC.shape[0])
    heat_HW = cv2.resize(map_GG, size, interpolation=cv2.INTER_CUBIC).clip(0)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    plain, looked, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    plain.imshow(image_HWC)
    looked.imshow(cv2.cvtColor(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))
    looked.imshow(heat_HW, cmap="inferno", alpha=0.6)
    for axes, caption in ((plain, "as the model sees it"), (looked, "attention roll-out")):
        axes.set_axis_off()
        axes.set_title(caption, fontsize=9)
    names = [name if len(name) <= 28 else f"{name[:27]}…" for name, _ in answers]
    places = range(len(answers))
    bars.barh(places, [probability for _, probability in answers], height=0.3, color="#4477aa")
    for place, (name, (_, probability)) in enumerate(zip(names, answers, strict=True)):
        bars.text(0.01, place - 0.2, f"{name}  {probability:.1%}", fontsize=8, va="bottom")
    bars.set(xlim=(0, 1), ylim=(len(answers) - 0.5, -0.75), yticks=[], xlabel="probability")
    bars.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    plotting.save(figure, path, dpi=120)
