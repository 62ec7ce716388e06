"""What a Vision Transformer costs: multiply-accumulates, floating-point operations, and a device's peak.

A multiply-accumulate (MAC) is two floating-point operations; a training step is three forward passes' worth.
"""

import re

from pipeline.config.schema import ModelConfig
from pipeline.model.vit import ARCHITECTURES, grid_size

# Dense bfloat16 FLOP/s by a part of the device's name; the makers' data sheets (SXM where the name doesn't say PCIe).
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def forward_macs(config: ModelConfig, classes: int, *, published: bool = False) -> int:
    """Multiply-accumulates of one image's forward pass: patch embedding, blocks and head.

    Norms, GELU and softmax aren't counted, as in published tables. ``published``: the whole last block too, which this
    code skips but for the class token; MFU doesn't count work that isn't done.
    """
    sizes = ARCHITECTURES[config.variant]
    patches = grid_size(config) ** 2
    tokens, width = patches + 1 + config.registers, sizes.width
    total = patches * 3 * sizes.patch**2 * width
    for block in range(sizes.depth):
        alone = block == sizes.depth - 1 and not published  # the class token's query
        queries = 1 if alone else tokens
        # Scores, and their sum over the values: of each head's K numbers a token, or of all D where a token has none
        attention = 2 * queries * tokens * width * (sizes.heads if alone else 1)
        total += 4 * queries * width**2 + attention + 2 * queries * width * sizes.mlp  # q, k, v and out
    if config.pre_logits:
        total += width**2
    return total + width * classes


def train_flops(config: ModelConfig, classes: int) -> float:
    """FLOPs of one image's training step. Recomputation by activation checkpointing isn't counted as useful."""
    return 6.0 * forward_macs(config, classes)


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU by its name; None where it isn't in the table."""
    return next((peak for part, peak in PEAKS.items() if is_device(part, device_name)), None)


def is_device(part: str, device_name: str) -> bool:
    """Whether a device's name has this part, as words: "L4" is no part of "L40"."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", device_name) is not None
