"""The layers' products by oneDNN against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model import linear
from pipeline.model.linear import LEAST_WORK, Linear

SHAPES = [((4, 50, 192), 576), ((256, 512), 300), ((7, 3, 11, 257), 401)]


def results(product: object, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Outputs and the three gradients."""
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    y = product(*inputs)  # type: ignore[operator]
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    return [y.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that went to oneDNN."""
    found: list[tuple[int, ...]] = []
    apply = linear._OneDnn.apply

    def counted(x: Tensor, *rest: Tensor) -> Tensor:
        found.append(tuple(x.shape))
        return apply(x, *rest)  # type: ignore[no-any-return]

    monkeypatch.setattr(linear._OneDnn, "apply", counted)
    return found


@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_and_gradients_are_as_exact_as_torchs(
    shape: tuple[int, ...], outputs: int, transposed: bool, monkeypatch: pytest.MonkeyPatch, calls: list[object]
) -> None:
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    x = x.transpose(0, 1) if transposed and len(shape) > 2 else x
    weight, bias = torch.randn(outputs, shape[-1], generator=generator), torch.randn(outputs, generator=generator)
    exact = results(F.linear, x.double(), weight.double(), bias.double())
    torchs = results(F.linear, x, weight, bias)
    ours = results(linear.linear, x, weight, bias)
    assert len(calls) == 1
    assert len(ours) == 4
    for own, theirs, value in zip(ours, torchs, exact, strict=True):
        error, allowed = (own - value).abs().max(), (theirs - value).abs().max()
        assert own.shape == value.shape
        assert error <= 3 * allowed + 1e-6


def test_only_training_in_float32_with_enough_work_takes_it(calls: list[object]) -> None:
    layer = Linear(512, 512)
    enough = LEAST_WORK // 512 // 512
    x = torch.randn(enough, 512)
    layer(x[:-1])
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    layer.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert not calls
    layer.float()(x)
    assert calls == [(enough, 512)]


def test_an_input_that_needs_no_gradient_gets_none(calls: list[object]) -> None:
    layer = Linear(512, 512)
    x = torch.randn(LEAST_WORK // 512 // 512, 512)
    layer(x).square().sum().backward()
    assert calls
    assert x.grad is None
    assert layer.weight.grad is not None
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    expected = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)
