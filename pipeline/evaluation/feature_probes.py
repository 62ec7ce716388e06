"""Evaluating frozen features without training: nearest neighbours, and a linear probe in closed form.

Letters of the shape suffixes: N training samples, M held-out samples, B batch, D width, C classes.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import JoinedSplit
from pipeline.loader.batches import eval_batches
from pipeline.model.preprocess import normalise
from pipeline.model.vit import ARCHITECTURES, VisionTransformer

NEIGHBOURS = 20  # DINO's best values of this and the next (arXiv 2104.14294, section 3.2 and appendix)
TEMPERATURE = 0.07
RIDGE = 1e-2  # times the features' mean variance
CHUNK = 1024  # samples compared, or summed in float64, at a time


@torch.no_grad()
def extract(
    model: VisionTransformer,
    split: JoinedSplit,
    *,
    batch: int,
    workers: int,
    device: torch.device,
    resize: str = "square",
    rank: int = 0,
    world_size: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """The class token's features of every sample, float32, in row order; zeros for the samples of other ranks.

    ``advance`` is called with the number of images done by all ranks.
    """
    model.eval()
    dtype = next(model.parameters()).dtype
    z_ND = torch.zeros(len(split), ARCHITECTURES[model.config.variant].width, device=device)
    for item in eval_batches(
        split,
        image_size=model.config.image_size,
        batch=batch,
        rank=rank,
        world_size=world_size,
        workers=workers,
        resize=resize,
    ):
        x_BCHW = normalise(item.images_BHWC.to(device), dtype, model.config)
        z_ND[item.samples_B.to(device)] = model.features(x_BCHW).float()
        advance(len(item.samples_B) * world_size)
    return z_ND


def check_features(z_ND: torch.Tensor, z_MD: torch.Tensor, labels_N: torch.Tensor, probe: str, option: str) -> None:
    """Raise UserError if features are non-finite, or if there is one class. ``option``: the dataset's, for messages."""
    if not (z_ND.isfinite().all() and z_MD.isfinite().all()):
        raise UserError("MODEL's features are non-finite: its training has diverged; name another checkpoint")
    if len(set(labels_N.tolist())) < 2:
        raise UserError(f"{probe} needs several classes, but {option} has one: name another dataset")


def choose_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of ``shots`` samples per class, drawn by ``seed``; all rows if ``shots`` is 0."""
    if shots == 0:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def nearest_neighbours(
    z_ND: torch.Tensor, labels_N: torch.Tensor, z_MD: torch.Tensor, classes: int, numbers: Sequence[int] = (NEIGHBOURS,)
) -> list[torch.Tensor]:
    """Predicted class of each held-out sample, for each number of neighbours (all samples if there are fewer).

    A vote of the nearest by cosine similarity, weighted by exp(similarity / TEMPERATURE).
    """
    z_ND, z_MD = F.normalize(z_ND, dim=1), F.normalize(z_MD, dim=1)
    predicted: list[list[torch.Tensor]] = [[] for _ in numbers]
    for z_BD in torch.split(z_MD, CHUNK):
        similarity_BK, neighbour_BK = (z_BD @ z_ND.T).topk(min(max(numbers), len(z_ND)), dim=1)
        weight_BK, label_BK = (similarity_BK / TEMPERATURE).exp(), labels_N[neighbour_BK]
        for number, found in zip(numbers, predicted, strict=True):
            votes_BC = z_BD.new_zeros(len(z_BD), classes)
            votes_BC.scatter_add_(1, label_BK[:, :number], weight_BK[:, :number])
            found.append(votes_BC.argmax(1))
    return [torch.cat(found) for found in predicted]


def linear_probe(z_ND: torch.Tensor, labels_N: torch.Tensor, z_MD: torch.Tensor, classes: int) -> torch.Tensor:
    """Predicted class of each held-out sample by ridge regression on targets -1 and 1, in float64 and closed form.

    Summed over chunks: ImageNet's 1.28 million targets of 1,000 classes would take 10 GB.
    """
    mean_D = z_ND.mean(0, dtype=torch.float64)
    gram_DD = mean_D.new_zeros(len(mean_D), len(mean_D))
    by_class_CD = mean_D.new_zeros(classes, len(mean_D))  # sums of the centred features
    for z_BD, labels_B in zip(torch.split(z_ND, CHUNK), torch.split(labels_N, CHUNK), strict=True):
        centred_BD = z_BD.double() - mean_D
        gram_DD += centred_BD.T @ centred_BD
        by_class_CD.index_add_(0, labels_B, centred_BD)
    gram_DD.diagonal().add_(RIDGE * gram_DD.diagonal().mean())
    # centred features times targets of -1 and 1: twice the class's sum, as the sum over all classes is zero
    weight_DC = torch.linalg.solve(gram_DD, 2.0 * by_class_CD.T)
    offset_C = 2.0 * torch.bincount(labels_N, minlength=classes).double() / len(labels_N) - 1.0
    scores = [((z_BD.double() - mean_D) @ weight_DC + offset_C).argmax(1) for z_BD in torch.split(z_MD, CHUNK)]
    return torch.cat(scores)


def probe(
    kind: Literal["knn", "linear"],
    model: VisionTransformer,
    train: JoinedSplit,
    split: JoinedSplit,
    *,
    shots: int,
    seed: int,
    batch: int,
    workers: int,
    device: torch.device,
    resize: str,
) -> float:
    """Top-1 on ``split`` of a probe fitted to the frozen features of ``train``, ``shots`` samples per class (0: all).

    Raises UserError if the features are non-finite, or if there is a single class.
    """
    rows = torch.from_numpy(choose_shots(train.label, shots, seed)).to(device)
    z_ND, z_MD = (
        extract(model, part, batch=batch, workers=workers, device=device, resize=resize) for part in (train, split)
    )
    z_ND = z_ND[rows]
    labels_N = torch.from_numpy(train.label.astype("int64")).to(device)[rows]
    check_features(z_ND, z_MD, labels_N, f"--probe {kind}", "--data")
    if kind == "knn":
        (predicted_M,) = nearest_neighbours(z_ND, labels_N, z_MD, split.info.classes)
    else:
        predicted_M = linear_probe(z_ND, labels_N, z_MD, split.info.classes)
    return float((predicted_M == torch.from_numpy(split.label.astype("int64")).to(device)).double().mean())
