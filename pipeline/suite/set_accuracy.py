"""Accuracy of a model on labelled images, exact on any number of processes.

Shapes: B batch, C classes of the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pipeline.inference.classifier import Classifier
from pipeline.inference.image_files import Picture, batches
from pipeline.model.preprocess import normalise
from pipeline.suite.subsets import hits


@dataclass(frozen=True)
class Counts:
    """Counts for one set, or one part of it."""

    samples: int
    top1: int  # hits
    top5: int
    real_samples: int = 0  # samples with at least one ReaL label
    real: int = 0  # hits by ReaL's labels
    damaged: tuple[str, ...] = ()  # names and reasons


class RealLabels(NamedTuple):
    """ReaL's labels (arXiv 2006.07159) for a set's images."""

    labels: Sequence[frozenset[int]]  # of each image: ReaL's classes; empty for an image that doesn't count
    group_C: torch.Tensor  # pipeline.suite.subsets.members of ReaL's classes


@torch.inference_mode()
def accuracy(
    classifier: Classifier,
    pictures: Sequence[Picture],
    labels: Sequence[int],
    group_C: torch.Tensor,
    *,
    real: RealLabels | None = None,
    batch: int,
    workers: int,
    rank: int,
    world_size: int,
    reduce: Callable[[torch.Tensor], torch.Tensor],
    gather: Callable[[list[str]], list[str]],
    advance: Callable[[int], None],
) -> Counts:
    """Evaluate; collective. ``group_C``: pipeline.suite.subsets.members of the set's classes, which ``labels`` index.

    ``real``: labels that are counted in the same pass. ``reduce`` sums a float64 tensor over the processes, ``gather``
    joins their lists, ``advance`` is called with the number of images done by all of them.
    """
    labels_N = torch.tensor(labels)
    sums = torch.zeros(5, dtype=torch.float64, device=classifier.device)
    damaged: list[str] = []
    mine = batches(
        pictures,
        batch=batch,
        size=classifier.known.model.image_size,
        resize=classifier.known.resize,
        workers=workers,
        rank=rank,
        world_size=world_size,
    )
    for part in mine:
        damaged += [f"{pictures[place].name}: {reason}" for place, reason in part.bad]
        advance((len(part.kept) + len(part.bad)) * world_size)
        if not part.kept:
            continue
        x_BCHW = normalise(
            part.images_BHWC.to(classifier.device, non_blocking=True), classifier.dtype, classifier.known.model
        )
        logits_BC = classifier.forward(x_BCHW).float()
        sums[:3] += hits(logits_BC, group_C, labels_N[part.kept].to(classifier.device))
        if real is not None:
            sums[3:] += real_hits(logits_BC, real.group_C, [real.labels[place] for place in part.kept])
    samples, top1, top5, real_samples, real_top1 = (round(value) for value in reduce(sums).tolist())
    return Counts(samples, top1, top5, real_samples, real_top1, tuple(gather(damaged)))


def real_hits(logits_BC: torch.Tensor, group_C: torch.Tensor, labels: Sequence[frozenset[int]]) -> torch.Tensor:
    """Images with ReaL labels, and those whose likeliest class is one of them (arXiv 2006.07159): two float64."""
    answered_B = ~logits_BC.isnan().any(1)
    masked_BC = logits_BC.masked_fill((group_C < 0).to(logits_BC.device), -torch.inf)
    predicted_B = group_C.to(logits_BC.device)[masked_BC.argmax(1)]
    right = [
        answered and predicted in valid
        for answered, predicted, valid in zip(answered_B.tolist(), predicted_B.tolist(), labels, strict=True)
    ]
    return torch.tensor([sum(map(bool, labels)), sum(right)], dtype=torch.float64, device=logits_BC.device)
