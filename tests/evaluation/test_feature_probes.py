"""Probes of frozen features against scikit-learn, and SGD against the update rule written out."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from pipeline.core.errors import UserError
from pipeline.evaluation import feature_probes, sgd_probe
from pipeline.suite.frozen_features import DRAWS, NEIGHBOURS, SHOTS, probe_all

CLASSES = 5


def clusters(seed: int, per: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five clouds that overlap, so that no probe is right about all samples."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(0)) * 0.6
    labels = torch.arange(CLASSES).repeat(per)
    return centres[labels] + torch.randn(CLASSES * per, 16, generator=generator), labels


@pytest.fixture(autouse=True)
def _chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one not full."""
    monkeypatch.setattr(feature_probes, "CHUNK", 64)


def test_every_number_of_neighbours_is_scikit_learns() -> None:
    z_ND, labels_N = clusters(1, 60)
    z_MD, _ = clusters(2, 40)
    found = feature_probes.nearest_neighbours(z_ND, labels_N, z_MD, CLASSES, NEIGHBOURS)
    assert len(found) == len(NEIGHBOURS) == 4
    for number, predicted_M in zip(NEIGHBOURS, found, strict=True):
        reference = KNeighborsClassifier(
            number, metric="cosine", weights=lambda distance: np.exp((1 - distance) / feature_probes.TEMPERATURE)
        ).fit(z_ND.double().numpy(), labels_N.numpy())
        assert predicted_M.tolist() == reference.predict(z_MD.double().numpy()).tolist()
    few = feature_probes.nearest_neighbours(z_ND[:7], labels_N[:7], z_MD, CLASSES, (7, 200))
    assert few[0].equal(few[1])


def ridge(z_ND: torch.Tensor, labels_N: torch.Tensor, z_MD: torch.Tensor) -> list[int]:
    centred = z_ND.double().numpy() - z_ND.double().numpy().mean(0)
    alpha = feature_probes.RIDGE * (centred**2).sum(0).mean()
    fitted = RidgeClassifier(alpha=alpha).fit(z_ND.double().numpy(), labels_N.numpy())
    return fitted.predict(z_MD.double().numpy()).tolist()  # type: ignore[no-any-return]


def test_the_closed_form_is_scikit_learns_ridge_classifier() -> None:
    z_ND, labels_N = clusters(1, 60)
    z_ND, labels_N = z_ND[:251] + 3, labels_N[:251]  # off centre, classes of other sizes
    z_MD = clusters(2, 40)[0] + 3
    assert feature_probes.linear_probe(z_ND, labels_N, z_MD, CLASSES).tolist() == ridge(z_ND, labels_N, z_MD)


def test_sgd_is_the_update_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient, momentum and schedule by hand, in float64: v = 0.9 v + g, w = w - lr v, lr cosine by epoch."""
    monkeypatch.setattr(sgd_probe, "BATCH", 64)
    monkeypatch.setattr(sgd_probe, "EPOCHS", 4)
    z_ND, labels_N = clusters(1, 20)
    rates = (0.01, 0.3)
    heads = sgd_probe.train_heads(z_ND, labels_N, CLASSES, rates)
    for rate, head in zip(rates, heads, strict=True):
        generator = torch.Generator().manual_seed(0)
        weight = (0.01 * torch.randn(CLASSES, 16, generator=generator)).double().numpy()
        weight = np.concatenate([weight, np.zeros((CLASSES, 1))], 1)
        speed = np.zeros_like(weight)
        z = np.concatenate([z_ND.double().numpy(), np.ones((100, 1))], 1)
        for epoch in range(4):
            now = rate * 64 / 256 * (1 + math.cos(math.pi * epoch / 4)) / 2
            order = torch.randperm(100, generator=generator).numpy()
            for rows in (order[:64], order[64:]):
                scores = np.exp(z[rows] @ weight.T)
                scores /= scores.sum(1, keepdims=True)
                scores[np.arange(len(rows)), labels_N.numpy()[rows]] -= 1
                speed = 0.9 * speed + scores.T @ z[rows] / len(rows)
                weight = weight - now * speed
        trained = torch.cat([head.weight, head.bias[:, None]], 1).detach().numpy()
        np.testing.assert_allclose(trained, weight, atol=1e-5)


def test_the_sgd_probe_never_sees_the_held_out_labels_and_learns() -> None:
    z_ND, labels_N = clusters(1, 60)
    z_MD, labels_M = clusters(2, 40)
    predicted_M, rate = sgd_probe.sgd_probe(z_ND, labels_N, z_MD, CLASSES)
    assert rate in sgd_probe.LEARNING_RATES
    closed = (feature_probes.linear_probe(z_ND, labels_N, z_MD, CLASSES) == labels_M).float().mean()
    assert (predicted_M == labels_M).float().mean() > closed - 0.05


def test_scores_of_all_probes() -> None:
    z_ND, labels_N = clusters(1, 30)
    z_MD, labels_M = clusters(2, 40)
    scores = probe_all(z_ND, labels_N, z_MD, labels_M, CLASSES)
    assert len(scores) == len(NEIGHBOURS) + 2 + len(SHOTS)
    assert {score["samples"] for score in scores} == {200.0}
    for shots, score in zip(SHOTS, scores[-len(SHOTS) :], strict=True):
        draws = []
        for seed in range(DRAWS):
            rows = feature_probes.choose_shots(labels_N.numpy(), shots, seed)
            draws.append(np.mean(np.array(ridge(z_ND[rows], labels_N[rows], z_MD)) == labels_M.numpy()))
        assert score["top1"] == pytest.approx(np.mean(draws))
        assert score["std"] == pytest.approx(np.std(draws, ddof=1))
    assert scores[-3]["top1"] < scores[-1]["top1"]
    assert scores[-3]["std"] > 0


def test_features_that_no_probe_can_judge_are_refused() -> None:
    z_ND, labels_N = clusters(1, 2)
    with pytest.raises(UserError, match="features are non-finite"):
        feature_probes.check_features(z_ND * math.nan, z_ND, labels_N, "a probe", "--features")
    with pytest.raises(UserError, match="a probe needs several classes, but --features has one"):
        feature_probes.check_features(z_ND, z_ND, labels_N * 0, "a probe", "--features")
