"""The Vision Transformer (arXiv 2010.11929), as in google-research/vision_transformer, with timm's parameter names.

The last block computes the class token's row only, since nothing else reaches the logits. The key matrix is applied to
its single query, and the value matrix to the weighted sum of the tokens, so no keys or values are computed per token.
Logits and gradients are the same; a training step of a B model saves 8 % of its FLOPs, of an L model 4 %.

Letters of the shape suffixes: B batch, C image channels (of an image) or classes (of logits), H W pixels, L tokens
(the class token first), Q the tokens that are computed (L, or 1 in the last block), D width, M width of the MLP,
N heads, K width of a head, E values per patch.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config.schema import ModelConfig, Variant
from pipeline.core.errors import UserError
from pipeline.model.cpu import attend

SIGMOID_HEAD_BIAS = -10.0  # as in the released ImageNet-21K models: at first every class is improbable (4.5e-5)


@dataclass(frozen=True)
class Architecture:
    """The sizes of a variant (Table 1 of the paper)."""

    patch: int
    width: int
    depth: int
    heads: int
    mlp: int


ARCHITECTURES: dict[Variant, Architecture] = {
    "b16": Architecture(patch=16, width=768, depth=12, heads=12, mlp=3072),
    "b32": Architecture(patch=32, width=768, depth=12, heads=12, mlp=3072),
    "l16": Architecture(patch=16, width=1024, depth=24, heads=16, mlp=4096),
    "l32": Architecture(patch=32, width=1024, depth=24, heads=16, mlp=4096),
    "tiny": Architecture(patch=8, width=128, depth=6, heads=4, mlp=512),  # ours: 1.2 M parameters, for CPUs and tests
}


def grid_size(config: ModelConfig) -> int:
    """Patches along one side of the image. Raises UserError if the patch size doesn't divide the image size."""
    patch = ARCHITECTURES[config.variant].patch
    if config.image_size <= 0 or config.image_size % patch:
        nearest = max(patch, round(config.image_size / patch) * patch)
        raise UserError(
            f"model.image_size {config.image_size} is not a multiple of the patch size {patch} of variant "
            f"{config.variant}: set model.image_size {nearest}"
        )
    return config.image_size // patch


class VisionTransformer(nn.Module):
    """Images to class scores.

    ``loss`` only decides the bias that :func:`initialise` gives the head. The weights are torch's defaults until
    :func:`initialise`, :func:`pipeline.model.transfer.transfer` or ``load_state_dict`` sets them.
    """

    def __init__(self, config: ModelConfig, classes: int, *, loss: Literal["sigmoid", "softmax"] = "softmax") -> None:
        super().__init__()
        grid = grid_size(config)
        sizes = ARCHITECTURES[config.variant]
        self.config = config
        self.classes = classes
        self.head_bias = SIGMOID_HEAD_BIAS if loss == "sigmoid" else 0.0
        self.patch_embed = PatchEmbed(sizes.patch, sizes.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.class_position + grid * grid, sizes.width))
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(sizes, config, drop) for drop in drop_rates(config))
        self.norm = nn.LayerNorm(sizes.width, eps=config.norm_eps)
        self.pre_logits = PreLogits(sizes.width) if config.pre_logits else nn.Identity()
        self.head = nn.Linear(sizes.width, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalised images in the parameters' dtype, ``image_size`` square -> logits_BC, one per class."""
        logits_BC: Tensor = self.head(self.pre_logits(self.features(x_BCHW)))
        return logits_BC

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Images -> z_BD, the normalised class token: what the head (or a linear probe) sees, before any pre_logits."""
        x_BLD = self.pos_drop(self._with_tokens(self.patch_embed(x_BCHW)))
        tokens = x_BLD.shape[1]
        for index, block in enumerate(self.blocks):
            queries = tokens if index < len(self.blocks) - 1 else 1
            if self.config.activation_checkpointing and self.training:
                x_BLD = checkpoint(block, x_BLD, queries, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, queries)
        z_BD: Tensor = self.norm(x_BLD[:, 0])
        return z_BD

    def _with_tokens(self, x_BLD: Tensor) -> Tensor:
        """Add the position embedding, put the class token and the registers first."""
        batch = x_BLD.shape[0]
        class_B1D = self.cls_token.expand(batch, -1, -1)
        if self.config.class_position:
            x_BLD = torch.cat([class_B1D, x_BLD], dim=1) + self.pos_embed
        else:
            x_BLD = torch.cat([class_B1D, x_BLD + self.pos_embed], dim=1)
        if self.config.registers:
            x_BLD = torch.cat([x_BLD[:, :1], self.reg_token.expand(batch, -1, -1), x_BLD[:, 1:]], dim=1)
        return x_BLD


def drop_rates(config: ModelConfig) -> list[float]:
    """Stochastic depth rate of each block."""
    depth = ARCHITECTURES[config.variant].depth
    if config.stochastic_depth_decay == "constant":
        return [config.stochastic_depth] * depth
    return [config.stochastic_depth * index / max(depth - 1, 1) for index in range(depth)]


class PatchEmbed(nn.Module):
    """Cut the image into patches, row by row, and embed each."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = PatchProjection(patch, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BLD: Tensor = self.proj(x_BCHW)
        return x_BLD


class PatchProjection(nn.Module):
    """A convolution with stride equal to its kernel size, computed as one matrix product; the weight has its shape."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # torch's default for a convolution

    def forward(self, x_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = x_BCHW.shape
        rows, columns = height // self.patch, width // self.patch
        x = x_BCHW.reshape(batch, channels, rows, self.patch, columns, self.patch)
        x_BLE = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * self.patch * self.patch)
        return F.linear(x_BLE, self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """Pre-norm block: attention, then MLP, each added to the residual. ``drop``: the block's stochastic depth rate.

    All tokens are attended to; the first ``queries`` tokens are computed and returned.
    """

    def __init__(self, sizes: Architecture, config: ModelConfig, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(sizes.width, eps=config.norm_eps)
        self.attn = Attention(sizes.width, sizes.heads, config.dropout)
        self.ls1 = LayerScale(sizes.width, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(sizes.width, eps=config.norm_eps)
        self.mlp = Mlp(sizes.width, sizes.mlp, config)
        self.ls2 = LayerScale(sizes.width, config.layer_scale) if config.layer_scale else nn.Identity()

    def forward(self, x_BLD: Tensor, queries: int) -> Tensor:
        x_BQD = x_BLD if queries == x_BLD.shape[1] else x_BLD[:, :queries]  # a slice's gradient is a copy
        x_BQD = x_BQD + self._survivors(self.ls1(self.attn(self.norm1(x_BLD), queries)))
        return x_BQD + self._survivors(self.ls2(self.mlp(self.norm2(x_BQD))))

    def _survivors(self, x_BQD: Tensor) -> Tensor:
        """Stochastic depth (arXiv 1603.09382): drop the branch for random samples, scale the rest to keep the mean."""
        if self.drop == 0.0 or not self.training:
            return x_BQD
        keep = 1.0 - self.drop
        kept_B11 = torch.empty(x_BQD.shape[0], 1, 1, device=x_BQD.device, dtype=x_BQD.dtype).bernoulli_(keep)
        return x_BQD * (kept_B11 / keep)


class LayerScale(nn.Module):
    """A learned factor per channel. A module of its own because ZeRO-3 gathers module by module."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x_BQD: Tensor) -> Tensor:
        return x_BQD * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention. No dropout on the attention weights, as in the published models."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QueryKeyValue(width, heads)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, queries: int) -> Tensor:
        y_BQD: Tensor = self.proj_drop(self.proj(self.qkv(x_BLD, queries)))
        return y_BQD


class QueryKeyValue(nn.Linear):
    """Three projections in one matrix (3D, D), and the attention of all tokens' queries or of the first one's.

    It slices its own weight because ZeRO-3 gathers module by module.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, 3 * width)
        self.heads = heads

    def forward(self, x_BLD: Tensor, queries: int) -> Tensor:  # type: ignore[override]
        """The heads' outputs side by side, y_BQD."""
        if queries == 1 and x_BLD.shape[1] > 1:
            return self._first_alone(x_BLD)
        q_BLD, k_BLD, v_BLD = F.linear(x_BLD, self.weight, self.bias).chunk(3, dim=-1)
        y_BNLK = attend(self._by_head(q_BLD), self._by_head(k_BLD), self._by_head(v_BLD))
        return y_BNLK.transpose(1, 2).flatten(2)

    def _by_head(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.reshape(*x_BLD.shape[:2], self.heads, -1).transpose(1, 2)

    def _first_alone(self, x_BLD: Tensor) -> Tensor:
        """The first token's query only: q . (W x) is (q W) . x, and the sum of a (W x + b) is W (sum of a x) + b.

        The keys' bias adds the same number to all scores of a query and so doesn't change the attention.
        """
        batch, _, width = x_BLD.shape
        q_DD, k_DD, v_DD = self.weight.chunk(3)
        q_D, _, v_D = self.bias.chunk(3)
        size = width // self.heads
        q_NBK = F.linear(x_BLD[:, 0], q_DD, q_D).reshape(batch, self.heads, size).transpose(0, 1)
        q_BND = torch.bmm(q_NBK, k_DD.reshape(self.heads, size, width)).transpose(0, 1)
        a_BNL = (torch.bmm(q_BND, x_BLD.transpose(1, 2)) / math.sqrt(size)).softmax(-1)
        x_NBD = torch.bmm(a_BNL, x_BLD).transpose(0, 1)
        y_NBK = torch.bmm(x_NBD, v_DD.reshape(self.heads, size, width).transpose(1, 2))
        return y_NBK.transpose(0, 1).reshape(batch, 1, width) + v_D


class Mlp(nn.Module):
    def __init__(self, width: int, mlp: int, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp)
        # Flax's gelu is the tanh approximation; the exact one differs by 4e-4 in the logits.
        self.act = nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
        self.drop1 = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(mlp, width)
        self.drop2 = nn.Dropout(config.dropout)

    def forward(self, x_BQD: Tensor) -> Tensor:
        x_BQM = self.drop1(self.act(self.fc1(x_BQD)))
        y_BQD: Tensor = self.drop2(self.fc2(x_BQM))
        return y_BQD


class PreLogits(nn.Module):
    """tanh(W z + b) between the features and the head (the hidden layer of the head in section 3.1 of the paper)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, z_BD: Tensor) -> Tensor:
        return torch.tanh(self.fc(z_BD))
