import math

import pytest
import torch
from torch import Tensor

from pipeline.model.losses import loss


def dense_targets(labels_B: Tensor, classes: int, smoothing: float) -> Tensor:
    targets = torch.zeros(len(labels_B), classes, dtype=torch.float64)
    targets[range(len(labels_B)), labels_B] = 1.0
    return targets * (1 - smoothing) + smoothing / classes


def reference(kind: str, logits_BC: Tensor, targets_BC: Tensor) -> float:
    """By the definitions, in float64, with Python's own logarithm."""
    total = 0.0
    for row, targets in zip(logits_BC.double().tolist(), targets_BC.tolist(), strict=True):
        if kind == "softmax":
            normaliser = math.log(sum(math.exp(logit) for logit in row))
            total -= sum(target * (logit - normaliser) for logit, target in zip(row, targets, strict=True))
        else:
            for logit, target in zip(row, targets, strict=True):
                probability = 1 / (1 + math.exp(-logit))
                total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
    return total / len(logits_BC)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_definitions(kind: str, dense: bool, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BC = 4 * torch.randn(5, 7, generator=generator)
    labels_B = torch.randint(0, 7, (5,), generator=generator)
    targets_BC = dense_targets(labels_B, 7, 0.0)
    if dense:  # mixup
        targets_BC = 0.7 * targets_BC + 0.3 * targets_BC.roll(1, 0)
    value = loss(kind, logits_BC, targets_BC if dense else labels_B, label_smoothing=smoothing)  # type: ignore[arg-type]
    expected = reference(kind, logits_BC, targets_BC * (1 - smoothing) + smoothing / 7)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_gradients_flow_and_are_those_of_the_probabilities(kind: str) -> None:
    logits_BC = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float32, requires_grad=True)
    labels_B = torch.tensor([0, 5, 2, 2])
    loss(kind, logits_BC, labels_B).backward()  # type: ignore[arg-type]
    probabilities = logits_BC.detach().sigmoid() if kind == "sigmoid" else logits_BC.detach().softmax(-1)
    expected = (probabilities - torch.nn.functional.one_hot(labels_B, 6)) / 4
    torch.testing.assert_close(logits_BC.grad, expected, rtol=1e-5, atol=1e-6)


def test_extreme_logits_stay_finite() -> None:
    logits_BC = torch.tensor([[1e4, -1e4, 0.0]])
    for kind in ("sigmoid", "softmax"):
        for label in range(3):
            assert torch.isfinite(loss(kind, logits_BC, torch.tensor([label])))


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """21843 classes at the initial bias of -10: bfloat16 sums would lose most of the terms."""
    logits_BC = torch.full((2, 21843), -10.0)
    labels_B = torch.tensor([3, 9])
    exact = loss("sigmoid", logits_BC, labels_B)
    assert exact.item() == pytest.approx(10 + 21843 * math.log1p(math.exp(-10)), rel=1e-5)
    assert loss("sigmoid", logits_BC.bfloat16(), labels_B).item() == pytest.approx(exact.item(), rel=1e-6)
