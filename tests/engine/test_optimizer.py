"""The optimizers against updates written out by hand, and the split into decaying and other parameters."""

import pytest
import torch

from pipeline.config.schema import ModelConfig, OptimConfig
from pipeline.engine.optimizer import build, layer_scale, parameter_groups
from pipeline.model.initialisation import initialise
from pipeline.model.vit import VisionTransformer


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


def test_learning_rates_by_layer() -> None:
    """The factors of timm's param_groups_layer_decay for ViT-B/16 at 0.75, as it gives them."""
    factors = {
        "cls_token": 0.023757264018058777,
        "pos_embed": 0.023757264018058777,
        "patch_embed.proj.weight": 0.023757264018058777,
        "blocks.0.norm1.weight": 0.03167635202407837,
        "blocks.5.attn.qkv.bias": 0.13348388671875,
        "blocks.10.mlp.fc2.weight": 0.5625,
        "blocks.11.attn.proj.weight": 0.75,
        "norm.bias": 0.75,
        "head.weight": 1.0,
    }
    assert {name: layer_scale(name, 12, 0.75) for name in factors} == factors
    with torch.device("meta"):
        model = VisionTransformer(ModelConfig("b16"), 1000)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1, 0.75)
    assert len(groups) == 2 * 14
    for group in groups:
        for parameter in group["params"]:
            assert group["lr_scale"] == layer_scale(names[id(parameter)], 12, 0.75)
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 and parameter.shape[0] > 1 else 0.0)


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
            layers = ["embed", *(f"blocks.{index}." for index in range(6)), "head"]
            layer = next((place for place, start in enumerate(layers) if name.startswith(start)), 0)
            lr = config.lr * config.layer_decay ** (7 - (6 if name.startswith("norm") else layer))
            if config.kind in ("adamw", "lamb"):
                first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
                second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
                direction = first[name] / (1 - config.beta1**step)
                eps = 1e-6 if config.kind == "lamb" else 1e-8
                scale = (second[name] / (1 - config.beta2**step)).sqrt() + eps
                update = direction / scale + decay * value
                if config.kind == "lamb" and decay and value.norm() > 0:  # arXiv 1904.00962
                    update = update * value.norm() / update.norm()
                values[name] = value - lr * update
            else:
                first[name] = config.momentum * first[name] + g + decay * value
                values[name] = value - lr * first[name]
    return values


@pytest.mark.parametrize(
    "config",
    [
        OptimConfig("adamw", lr=1e-2, weight_decay=0.1),
        OptimConfig("adamw", lr=1e-2, weight_decay=0.03, beta1=0.8, beta2=0.95),
        OptimConfig("adamw", lr=1e-2, weight_decay=0.1, layer_decay=0.75),
        OptimConfig("lamb", lr=1e-2, weight_decay=0.1),
        OptimConfig("lamb", lr=1e-2, weight_decay=0.02, beta1=0.8, layer_decay=0.65),
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
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["lr_scale"]  # as pipeline.engine.deepspeed_engine.set_learning_rate
    for gradient in gradients:
        for name, parameter in model.named_parameters():
            parameter.grad = gradient[name].clone()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
