"""Frozen features judged without training: nearest neighbours, and a linear probe in closed form.

Letters of the shape suffixes: N training samples, M held-out samples, B batch, D width, C classes.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import JoinedSplit
from pipeline.loader.batches import eval_batches
from pipeline.model.preprocess import normalise
from pipeline.model.vit import VisionTransformer

NEIGHBOURS = 20  # and
TEMPERATURE = 0.07  # as DINO's k-NN (arXiv 2104.14294, appendix)
RIDGE = 1e-2  # times the features' mean variance
CHUNK = 1024  # held-out samples compared at once


@torch.no_grad()
def extract(
    model: VisionTransformer,
    split: JoinedSplit,
    *,
    batch: int,
    workers: int,
    device: torch.device,
    resize: str = "square",
) -> torch.Tensor:
    """The class token's features of every sample, float32, in row order."""
    model.eval()
    dtype = next(model.parameters()).dtype
    parts = [
        model.features(normalise(item.images_BHWC.to(device), dtype, model.config)).float()
        for item in eval_batches(
            split,
            image_size=model.config.image_size,
            batch=batch,
            rank=0,
            world_size=1,
            workers=workers,
            resize=resize,
        )
    ]
    return torch.cat(parts)


def choose_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of ``shots`` samples a class, drawn by ``seed``; all rows where ``shots`` is 0."""
    if shots == 0:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def nearest_neighbours(z_ND: torch.Tensor, labels_N: torch.Tensor, z_MD: torch.Tensor, classes: int) -> torch.Tensor:
    """Predicted class of each held-out sample: a vote of the nearest by cosine, weighted by exp(similarity / T)."""
    z_ND, z_MD = F.normalize(z_ND, dim=1), F.normalize(z_MD, dim=1)
    predicted = []
    for z_BD in torch.split(z_MD, CHUNK):
        similarity_BK, neighbour_BK = (z_BD @ z_ND.T).topk(min(NEIGHBOURS, len(z_ND)), dim=1)
        votes_BC = z_BD.new_zeros(len(z_BD), classes)
        votes_BC.scatter_add_(1, labels_N[neighbour_BK], (similarity_BK / TEMPERATURE).exp())
        predicted.append(votes_BC.argmax(1))
    return torch.cat(predicted)


def linear_probe(z_ND: torch.Tensor, labels_N: torch.Tensor, z_MD: torch.Tensor, classes: int) -> torch.Tensor:
    """Predicted class of each held-out sample by ridge regression on targets -1 and 1, in float64 and closed form."""
    z_ND, z_MD = z_ND.double(), z_MD.double()
    mean_D = z_ND.mean(0)
    z_ND = z_ND - mean_D
    targets_NC = 2.0 * F.one_hot(labels_N, classes).double() - 1.0
    offset_C = targets_NC.mean(0)
    gram_DD = z_ND.T @ z_ND
    gram_DD.diagonal().add_(RIDGE * gram_DD.diagonal().mean())
    weight_DC = torch.linalg.solve(gram_DD, z_ND.T @ (targets_NC - offset_C))
    scores_MC: torch.Tensor = (z_MD - mean_D) @ weight_DC + offset_C
    return scores_MC.argmax(1)


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
    if not (z_ND.isfinite().all() and z_MD.isfinite().all()):
        raise UserError("MODEL's features are non-finite: its training has diverged; name another checkpoint")
    if len(set(labels_N.tolist())) < 2:
        raise UserError(f"--probe {kind} tells classes apart, and --data has one: name a dataset of several classes")
    predict = nearest_neighbours if kind == "knn" else linear_probe
    predicted_M = predict(z_ND, labels_N, z_MD, split.info.classes)
    return float((predicted_M == torch.from_numpy(split.label.astype("int64")).to(device)).double().mean())
