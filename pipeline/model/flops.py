"""The cost of a Vision Transformer: multiply-accumulates, floating-point operations, hours.

A multiply-accumulate (MAC) is two floating-point operations; a training step costs as much as three forward passes.
"""

from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.model.vit import ARCHITECTURES, grid_size


def forward_macs(config: ModelConfig, classes: int, *, published: bool = False) -> int:
    """Multiply-accumulates of one image's forward pass: patch embedding, blocks and head.

    Norms, GELU and softmax aren't counted, as in published tables. ``published``: count the whole last block, which
    this code computes for the class token only; MFU doesn't count work that isn't done.
    """
    sizes = ARCHITECTURES[config.variant]
    patches = grid_size(config) ** 2
    tokens, width = patches + 1 + config.registers, sizes.width
    total = patches * 3 * sizes.patch**2 * width
    for block in range(sizes.depth):
        alone = block == sizes.depth - 1 and not published  # the class token's query
        queries = 1 if alone else tokens
        # Scores, and their sum over the values: K numbers per token and head, or D if tokens have no keys and values
        attention = 2 * queries * tokens * width * (sizes.heads if alone else 1)
        total += 4 * queries * width**2 + attention + 2 * queries * width * sizes.mlp  # q, k, v and out
    if config.pre_logits:
        total += width**2
    return total + width * classes


def train_flops(config: ModelConfig, classes: int) -> float:
    """FLOPs of one image's training step. Recomputation by activation checkpointing isn't counted as useful."""
    return 6.0 * forward_macs(config, classes)


def training_hours(config: RunConfig, classes: int, steps: int, ranks: int, *, peak: float, mfu: float) -> float:
    """Hours of training alone, at ``mfu`` of ``peak`` FLOP/s per rank; recomputed activations cost a third more."""
    again = 4 / 3 if config.model.activation_checkpointing else 1.0
    flops = again * train_flops(config.model, classes) * config.train.global_batch * steps
    return flops / (ranks * peak * mfu) / 3600
