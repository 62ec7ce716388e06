"""The optimizers against updates written out by hand, and the split into decaying and other parameters."""

import pytest
import torch

from pipeline.config import ModelConfig, OptimConfig
from pipeline.model import VisionTransformer, initialise
from pipeline.optim import build, parameter_groups


def test_which_tensors_decay() -> None:
    with torch.device("meta"):
        model = VisionTransformer(ModelConfig("b16"), 1000)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, rest = parameter_groups(model, 0.1)
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert len(decaying["params"]) == 50
    assert len(rest["params"]) == 102
    expected = {"patch_embed.proj.weight", "head.weight"} | {
        f"blocks.{index}.{name}.weight"
        for index in range(12)
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert {names[id(parameter)] for parameter in decaying["params"]} == expected


def test_frozen_parameters_are_left_out() -> None:
    model = VisionTransformer(ModelConfig("tiny", 32), 10)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    decaying, rest = parameter_groups(model, 0.1)
    assert [len(decaying["params"]), len(rest["params"])] == [1, 1]


def steps_by_hand(
    config: OptimConfig, model: VisionTransformer, gradients: list[dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Adam (arXiv 1412.6980) with decoupled decay (arXiv 1711.05101), or SGD with momentum, in float64."""
    values = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in values.items()}
    second = {name: torch.zeros_like(value) for name, value in values.items()}
    for step, gradient in enumerate(gradients, start=1):
        for name, value in values.items():
            g = gradient[name].double()
            decay = config.weight_decay if value.ndim > 1 and name not in ("cls_token", "pos_embed") else 0.0
            if config.kind == "adamw":
                first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
                second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
                direction = first[name] / (1 - config.beta1**step)
                scale = (second[name] / (1 - config.beta2**step)).sqrt() + 1e-8
                values[name] = value - config.lr * (direction / scale + decay * value)
            else:
                first[name] = config.momentum * first[name] + g + decay * value
                values[name] = value - config.lr * first[name]
    return values


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig("adamw", lr=1e-2, weight_decay=0.1),
        OptimConfig("adamw", lr=1e-2, weight_decay=0.03, beta1=0.8, beta2=0.95),
        OptimConfig("sgd", lr=0.03),
        OptimConfig("sgd", lr=0.03, weight_decay=1e-2, momentum=0.5),
    ],
)
def test_updates_by_hand(config: OptimConfig) -> None:
    model = VisionTransformer(ModelConfig("tiny", 16), 3)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(0)
    gradients = [
        {name: torch.randn(parameter.shape, generator=generator) for name, parameter in model.named_parameters()}
        for _ in range(3)
    ]
    expected = steps_by_hand(config, model, gradients)
    optimizer = build(config, model)
    for gradient in gradients:
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name].clone()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
