"""What a run needs: GPU memory by part, checkpoint size. Pure arithmetic on a configuration.

Memory is estimated from the tensors that must be kept. Allocator overhead, libraries (about 1 GB) and NCCL's buffers
are not included.
"""

from dataclasses import dataclass

import torch

from pipeline.config.schema import RunConfig
from pipeline.engine.state_keys import MOMENTS
from pipeline.model.vit import ARCHITECTURES, VisionTransformer, grid_size

BYTES = {"float32": 4, "bfloat16": 2}
BUCKET = 500_000_000  # elements of DeepSpeed's gradient buffer (reduce_bucket_size), at most the model's size


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU."""

    parameters: float  # weights in the compute type
    gradients: float
    master: float  # float32 master weights, if the optimizer has them
    moments: float  # optimizer moments and the running average
    buckets: float  # buffers for reducing gradients
    activations: float
    host: float  # bytes per rank in host memory instead, with offloading

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.master + self.moments + self.buckets + self.activations


def count_parameters(config: RunConfig, classes: int) -> int:
    with torch.device("meta"):
        model = VisionTransformer(config.model, classes, loss=config.train.loss)
    return sum(parameter.numel() for parameter in model.parameters())


def memory(config: RunConfig, classes: int, ranks: int) -> Memory:
    stage, element = config.train.zero_stage, BYTES[config.train.dtype]
    count = count_parameters(config, classes)
    share = count / ranks
    kept = len(MOMENTS[config.optim.kind]) + (config.train.average > 0)
    master = 4 * share if stage else 0.0
    moments = 4.0 * kept * (share if stage else count)
    host = master + moments if config.train.offload else 0.0
    return Memory(
        parameters=element * (share if stage == 3 else count),
        gradients=element * (share if stage >= 2 else count),
        master=0.0 if host else master,
        moments=0.0 if host else moments,
        buckets=element * min(BUCKET, count) if stage else 0.0,
        activations=activations(config, classes),
        host=host,
    )


def activations(config: RunConfig, classes: int) -> float:
    """Bytes that one micro-batch's forward pass keeps for the backward pass, with fused attention.

    A block keeps per token: inputs and outputs of both norms (4 D), q, k and v (3 D), the attention's output before and
    after the heads are joined (2 D), and the MLP before and after its GELU (2 M). The last block keeps what the class
    token needs.
    """
    sizes, element = ARCHITECTURES[config.model.variant], BYTES[config.train.dtype]
    tokens = grid_size(config.model) ** 2 + 1
    block = tokens * (9 * sizes.width + 2 * sizes.mlp)
    last = tokens * 2 * sizes.width + 2 * sizes.heads * sizes.width  # the first norm's input and output; D per head
    blocks = (sizes.depth - 1) * block + last
    dropout = config.model.dropout > 0  # a mask of one byte per number, for each block and the first block's input
    masks = dropout * tokens * (2 * sizes.width + sizes.mlp)
    dropped = (sizes.depth - 1) * masks + dropout * tokens * sizes.width
    if config.model.activation_checkpointing:
        blocks = sizes.depth * tokens * sizes.width + block  # each block's input, and one block in progress
        dropped = masks
    pixels = 3 * config.model.image_size**2
    image = element * (blocks + pixels) + dropped + 4 * 3 * classes  # logits, their float32 copy and its gradient
    return float(config.train.micro_batch * image)


def checkpoint_bytes(config: RunConfig, classes: int) -> int:
    """Bytes of float32 weights and moments; the same for any number of ranks."""
    tensors = 1 + len(MOMENTS[config.optim.kind]) + (config.train.average > 0)
    return 4 * tensors * count_parameters(config, classes)
