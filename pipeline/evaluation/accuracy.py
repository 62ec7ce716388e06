"""Evaluation, exact under any number of ranks: every sample once, counts summed as integers.

Shapes: B batch, C classes, H height, W width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.config.schema import ModelConfig
from pipeline.dataset.joined_split import JoinedSplit
from pipeline.loader.batches import Batch, eval_batches
from pipeline.model.losses import loss as loss_of
from pipeline.model.preprocess import normalise

Forward = Callable[[torch.Tensor], torch.Tensor]  # x_BCHW -> logits_BC


@dataclass(frozen=True)
class Result:
    samples: int
    top1: float  # fraction of samples whose label has the highest logit
    top5: float  # ... one of the five highest
    loss: float  # mean over the samples

    def __str__(self) -> str:
        return f"{self.samples:,} samples, top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, loss {self.loss:.4f}"

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        return {f"{prefix}top1": self.top1, f"{prefix}top5": self.top5, f"{prefix}loss": self.loss}


@torch.no_grad()
def evaluate(
    forward: Forward,
    split: JoinedSplit,
    *,
    model: ModelConfig,
    batch: int,
    loss: Literal["sigmoid", "softmax"],
    workers: int,
    device: torch.device,
    dtype: torch.dtype,
    rank: int,
    world_size: int,
    reduce: Callable[[torch.Tensor], torch.Tensor],
    observe: Callable[[torch.Tensor, Batch], None] | None = None,
    resize: str = "square",
) -> Result:
    """Run ``forward`` over the split; collective. ``reduce`` sums a float64 tensor over the ranks,
    ``observe`` gets each batch of this rank with its logits_BC.

    Each rank calls ``forward`` the same number of times, with an empty image when its samples have run out: under
    ZeRO-3 a forward pass is collective.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # samples, top-1 hits, top-5 hits, loss
    batches = eval_batches(
        split,
        image_size=model.image_size,
        batch=batch,
        rank=rank,
        world_size=world_size,
        workers=workers,
        resize=resize,
    )
    longest_share = math.ceil(len(split) / world_size)
    for _ in range(math.ceil(longest_share / batch)):
        item = next(batches, None)
        if item is None:
            forward(torch.zeros(1, 3, model.image_size, model.image_size, device=device, dtype=dtype))
            continue
        logits_BC = forward(normalise(item.images_BHWC.to(device), dtype, model)).float()
        labels_B = item.labels_B.to(device)
        if observe is not None:
            observe(logits_BC, item)
        sums += torch.stack([*counts(logits_BC, labels_B), loss_of(loss, logits_BC, labels_B).double() * len(labels_B)])
    samples, top1, top5, total_loss = reduce(sums).tolist()
    if samples != len(split):
        raise RuntimeError(f"{samples:.0f} samples were evaluated, but the split has {len(split)}")
    return Result(int(samples), top1 / samples, top5 / samples, total_loss / samples)


def counts(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Number of samples, of labels ranked first, and of labels among the first five (or all classes), in float64.

    A label's rank is the number of classes with a higher logit, or an equal logit and a lower index, so ties don't
    raise the accuracy. A sample with a NaN logit counts as wrong.
    """
    own_B1 = logits_BC.gather(1, labels_B[:, None])
    index_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    ahead_BC = (logits_BC > own_B1) | ((logits_BC == own_B1) & (index_C < labels_B[:, None])) | logits_BC.isnan()
    rank_B = ahead_BC.sum(1) + 5 * own_B1[:, 0].isnan()
    return (
        torch.tensor(float(len(labels_B)), dtype=torch.float64, device=logits_BC.device),
        (rank_B < 1).sum().double(),
        (rank_B < 5).sum().double(),
    )
