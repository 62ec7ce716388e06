"""Accuracy on a set that has only some of the model's classes, or that merges several of them. Pure.

Letters of the shape suffixes: B batch, C classes of the model, G classes of the set.
"""

from collections.abc import Mapping, Sequence

import torch

from pipeline.core.errors import UserError
from pipeline.evaluation.accuracy import counts

# AlexNet's mean error over the five severities of each corruption (github.com/hendrycks/robustness,
# ImageNet-C/test.py): the denominators of arXiv 1903.12261
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def members(classes: Sequence[tuple[str, ...]], wnids: Sequence[str], title: str) -> torch.Tensor:
    """For each class of the model, the class of the set that it belongs to, or -1: a tensor of C integers.

    Raises UserError if the model lacks a class of the set.
    """
    index = {wnid: place for place, wnid in enumerate(wnids)}
    group_C = torch.full((len(wnids),), -1)
    for number, group in enumerate(classes):
        if missing := [wnid for wnid in group if wnid not in index]:
            raise UserError(f"MODEL has no class {missing[0]}, which {title} requires: it needs ImageNet-2012's 1,000")
        group_C[[index[wnid] for wnid in group]] = number
    return group_C


def grouped(logits_BC: torch.Tensor, group_C: torch.Tensor) -> torch.Tensor:
    """logits_BG: the largest logit of each of the set's classes; classes outside the set are removed."""
    groups = int(group_C.max()) + 1
    kept = group_C >= 0
    logits_BG = logits_BC.new_full((len(logits_BC), groups), -torch.inf)
    index_BK = group_C[kept].to(logits_BC.device).expand(len(logits_BC), -1)
    return logits_BG.scatter_reduce(1, index_BK, logits_BC[:, kept.to(logits_BC.device)], "amax")


def hits(logits_BC: torch.Tensor, group_C: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Samples, top-1 hits, top-5 hits: three float64."""
    return torch.stack(counts(grouped(logits_BC, group_C), labels_B))


def corruption_scores(errors: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Mean top-1 over corruptions and severities, and mCE (arXiv 1903.12261, section 4).

    ``errors``: top-1 error by corruption and severity, all of them.
    """
    means = {name: sum(by_severity.values()) / len(by_severity) for name, by_severity in errors.items()}
    scores = {"top1": 1.0 - sum(means.values()) / len(means)}
    if set(means) == set(ALEXNET):
        scores["mce"] = sum(means[name] / ALEXNET[name] for name in ALEXNET) / len(ALEXNET)
    return scores
