"""The first weights of a Vision Transformer: the paper's, as in google-research/vision_transformer, or DeiT III's."""

import math

import torch
from torch import Tensor, nn

from pipeline.model.vit import Block, LayerScale, PreLogits, VisionTransformer

TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal cut off at +-2


@torch.no_grad()
def initialise(model: VisionTransformer, seed: int) -> None:
    """Set every parameter, in place, as ``model.config.initialisation`` says.

    The same seed gives the same weights on every rank: the random numbers come from a separate CPU generator in a fixed
    order, and the state of torch's global generator doesn't change.
    """
    generator = torch.Generator().manual_seed(seed)
    if model.config.initialisation == "deit3":
        _initialise_deit3(model, generator)
    else:
        _initialise_vit(model, generator)
    if model.config.registers:  # as DINOv2 starts them
        _fill(model.reg_token, torch.empty(model.reg_token.shape).normal_(std=1e-6, generator=generator))
    for module in model.modules():
        if isinstance(module, LayerScale):
            module.gamma.fill_(module.value)


def _initialise_vit(model: VisionTransformer, generator: torch.Generator) -> None:
    """As models_vit.py of google-research/vision_transformer does."""
    _lecun_normal(model.patch_embed.proj.weight, generator)
    model.patch_embed.proj.bias.zero_()
    model.cls_token.zero_()
    _fill(model.pos_embed, torch.empty(model.pos_embed.shape).normal_(std=0.02, generator=generator))
    for block in model.blocks:
        assert isinstance(block, Block)
        for norm in (block.norm1, block.norm2):
            norm.reset_parameters()
        for matrix in block.attn.qkv.weight.chunk(3):  # q, k and v separately: fused, the bound would be smaller
            _xavier_uniform(matrix, generator)
        _xavier_uniform(block.attn.proj.weight, generator)
        block.attn.qkv.bias.zero_()
        block.attn.proj.bias.zero_()
        for layer in (block.mlp.fc1, block.mlp.fc2):
            _xavier_uniform(layer.weight, generator)
            _fill(layer.bias, torch.empty(layer.bias.shape).normal_(std=1e-6, generator=generator))
    model.norm.reset_parameters()
    if isinstance(model.pre_logits, PreLogits):
        _lecun_normal(model.pre_logits.fc.weight, generator)
        model.pre_logits.fc.bias.zero_()
    zero_head(model)


def _initialise_deit3(model: VisionTransformer, generator: torch.Generator) -> None:
    """As models_v2.py of facebookresearch/deit does: the patch convolution keeps torch's default for a convolution."""
    patch = model.patch_embed.proj
    bound = 1.0 / math.sqrt(patch.weight[0].numel())
    for parameter in (patch.weight, patch.bias):
        _fill(parameter, torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    for parameter in (model.cls_token, model.pos_embed):
        _truncated_normal(parameter, generator)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            _truncated_normal(module.weight, generator)
            module.bias.zero_()
    model.head.bias.fill_(model.head_bias)


@torch.no_grad()
def zero_head(model: VisionTransformer) -> None:
    """Initialise the head: kernel 0, bias 0 (softmax) or -10 (sigmoid)."""
    model.head.weight.zero_()
    model.head.bias.fill_(model.head_bias)


def _xavier_uniform(weight: Tensor, generator: torch.Generator) -> None:
    bound = math.sqrt(6.0 / (weight.shape[0] + weight.shape[1]))
    _fill(weight, torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))


def _lecun_normal(weight: Tensor, generator: torch.Generator) -> None:
    """Normal with variance 1 / fan_in, truncated at two standard deviations (as in jax.nn.initializers)."""
    std = 1.0 / math.sqrt(weight[0].numel()) / TRUNCATED_STD
    values = torch.empty(weight.shape)
    nn.init.trunc_normal_(values, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
    _fill(weight, values)


def _truncated_normal(parameter: Tensor, generator: torch.Generator) -> None:
    """Normal with standard deviation 0.02, truncated at +-2, i.e. at 100 deviations (timm's trunc_normal_)."""
    values = torch.empty(parameter.shape)
    nn.init.trunc_normal_(values, std=0.02, a=-2.0, b=2.0, generator=generator)
    _fill(parameter, values)


def _fill(parameter: Tensor, values: Tensor) -> None:
    """Copy float32 values made on the CPU into a parameter of any dtype and device."""
    parameter.copy_(values)
