"""The model against the published numbers and a reference written from the paper's equations."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from pipeline.config.schema import ModelConfig, Variant
from pipeline.core.errors import UserError
from pipeline.model.initialisation import initialise
from pipeline.model.vit import ARCHITECTURES, Block, VisionTransformer, drop_rates
from tests.helpers.models import random_model

# Parameters of the released models (google-research/vision_transformer).
COUNTS = [
    ("b16", 224, 1000, False, 86_567_656),
    ("b16", 384, 1000, False, 86_859_496),
    ("b16", 224, 21843, False, 102_595_923),
    ("b16", 224, 21843, True, 103_186_515),
    ("b32", 224, 1000, False, 88_224_232),
    ("b32", 384, 1000, False, 88_297_192),
    ("b32", 224, 21843, False, 104_252_499),
    ("b32", 224, 21843, True, 104_843_091),
    ("l16", 224, 1000, False, 304_326_632),
    ("l16", 384, 1000, False, 304_715_752),
    ("l16", 224, 21843, False, 325_690_707),
    ("l16", 224, 21843, True, 326_740_307),
    ("l32", 224, 1000, False, 306_535_400),
    ("l32", 384, 1000, False, 306_632_680),
    ("l32", 224, 21843, False, 327_899_475),
    ("l32", 224, 21843, True, 328_949_075),
]


@pytest.mark.parametrize(("variant", "size", "classes", "pre_logits", "count"), COUNTS)
def test_parameter_counts(variant: Variant, size: int, classes: int, pre_logits: bool, count: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer(ModelConfig(variant, size, pre_logits=pre_logits), classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    tensors = {"b": 152, "l": 296}[variant[0]] + 2 * pre_logits
    assert len(model.state_dict()) == tensors


def reference(state: dict[str, Tensor], images: Tensor, *, heads: int, exact_gelu: bool = False) -> Tensor:
    """Equations 1 to 4 of the paper in float64, one image, patch, head and token at a time where that is plainer."""

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return centred / (variance + 1e-6) ** 0.5 * state[f"{name}.weight"] + state[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        if exact_gelu:
            return x * 0.5 * (1 + torch.erf(x / 2**0.5))
        return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def attention(block: str, x: Tensor) -> Tensor:
        q, k, v = dense(f"{block}.attn.qkv", x).split(x.shape[-1], dim=-1)
        size = x.shape[-1] // heads
        outputs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / size**0.5
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            outputs.append(weights @ v[:, part])
        return dense(f"{block}.attn.proj", torch.cat(outputs, dim=-1))

    kernel = state["patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    logits = []
    for image in images:
        tokens = [state["cls_token"][0, 0]]
        for row in range(0, image.shape[1], patch):
            for column in range(0, image.shape[2], patch):
                cut = image[:, row : row + patch, column : column + patch]
                tokens.append((kernel * cut).sum((1, 2, 3)) + state["patch_embed.proj.bias"])
        z = torch.stack(tokens) + state["pos_embed"][0]  # equation 1
        for index in range(blocks):
            z = attention(f"blocks.{index}", norm(f"blocks.{index}.norm1", z)) + z  # equation 2
            hidden = gelu(dense(f"blocks.{index}.mlp.fc1", norm(f"blocks.{index}.norm2", z)))
            z = dense(f"blocks.{index}.mlp.fc2", hidden) + z  # equation 3
        y = norm("norm", z[0])  # equation 4
        if "pre_logits.fc.weight" in state:
            y = torch.tanh(dense("pre_logits.fc", y))
        logits.append(dense("head", y))
    return torch.stack(logits)


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
@pytest.mark.parametrize("pre_logits", [False, True])
def test_logits_and_gradients_of_the_equations(pre_logits: bool, gelu: str) -> None:
    config = ModelConfig("tiny", 32, pre_logits=pre_logits, gelu="tanh" if gelu == "tanh" else "exact")
    model = random_model(config).double().train()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.state_dict().items()}
    expected = reference(state, images, heads=4, exact_gelu=gelu == "exact")
    logits = model(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    weights = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-9, atol=1e-10, msg=name)


def test_b16_logits_of_the_equations() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(ModelConfig("b16", 32), classes=5).double().eval()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(model.state_dict(), images, heads=12)
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_initialisation_per_matrix(loss: str) -> None:
    config = ModelConfig("b32", 64, pre_logits=True)
    model = VisionTransformer(config, 10, loss="sigmoid" if loss == "sigmoid" else "softmax")
    initialise(model, 3)
    state = model.state_dict()

    def uniform(matrix: Tensor, bound: float) -> None:
        assert 0.999 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)

    def lecun(kernel: Tensor, fan_in: int) -> None:
        assert kernel.std().item() == pytest.approx(fan_in**-0.5, rel=0.01)
        assert kernel.abs().max() <= 2 * fan_in**-0.5 / 0.8796
        assert kernel.abs().max() > 1.98 * fan_in**-0.5 / 0.8797

    lecun(state["patch_embed.proj.weight"], 3 * 32 * 32)
    lecun(state["pre_logits.fc.weight"], 768)
    assert state["pos_embed"].std().item() == pytest.approx(0.02, rel=0.05)
    for index in range(12):
        block = f"blocks.{index}"
        for part in range(3):
            uniform(state[f"{block}.attn.qkv.weight"][part * 768 : (part + 1) * 768], 0.0625)
        uniform(state[f"{block}.attn.proj.weight"], 0.0625)
        uniform(state[f"{block}.mlp.fc1.weight"], (6 / (768 + 3072)) ** 0.5)
        uniform(state[f"{block}.mlp.fc2.weight"], (6 / (768 + 3072)) ** 0.5)
        assert state[f"{block}.mlp.fc1.bias"].std().item() == pytest.approx(1e-6, rel=0.1)
        assert state[f"{block}.mlp.fc2.bias"].std().item() == pytest.approx(1e-6, rel=0.15)
        for norm in ("norm1", "norm2"):
            assert (state[f"{block}.{norm}.weight"] == 1).all()
    zeros = [name for name in state if name.endswith(("qkv.bias", "attn.proj.bias", "norm1.bias", "norm2.bias"))]
    assert len(zeros) == 48
    for name in [*zeros, "cls_token", "patch_embed.proj.bias", "pre_logits.fc.bias", "norm.bias", "head.weight"]:
        assert (state[name] == 0).all(), name
    assert (state["head.bias"] == (-10 if loss == "sigmoid" else 0)).all()


def test_initialisation_is_a_function_of_the_seed_alone() -> None:
    models = [VisionTransformer(ModelConfig("tiny", 32), 10) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(seed * 17)
        before = torch.get_rng_state()
        initialise(model, seed)
        assert torch.equal(before, torch.get_rng_state())
    first, same, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], first["blocks.1.mlp.fc1.weight"])


def test_dropout_stands_where_the_published_models_have_it() -> None:
    model = random_model(ModelConfig("tiny", 32, dropout=0.1))
    dropouts = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    expected = {"pos_drop"} | {
        f"blocks.{i}.{name}" for i in range(6) for name in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    }
    assert dropouts == dict.fromkeys(expected, 0.1)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_stochastic_depth_grows_linearly_and_keeps_the_mean() -> None:
    model = VisionTransformer(ModelConfig("tiny", 32, stochastic_depth=0.5), 10)
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    assert [block.drop for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    branch = torch.ones(20_000, 2, 3)
    torch.manual_seed(0)
    survivors = blocks[3].train()._survivors(branch)
    assert survivors.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (survivors == survivors[:, :1, :1]).all(), "a sample's branch is dropped as a whole"
    assert survivors.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(blocks[3].eval()._survivors(branch), branch)


def test_activation_checkpointing_changes_no_bit() -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    results = []
    for recompute in (False, True):
        config = ModelConfig("tiny", 32, dropout=0.1, stochastic_depth=0.2, activation_checkpointing=recompute)
        model = random_model(config).train()
        torch.manual_seed(5)
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*results, strict=True))


def test_compiles_without_a_graph_break() -> None:
    model = random_model(ModelConfig("tiny", 32)).train()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=1e-6)


def test_bfloat16_is_near_float32() -> None:
    model = random_model(ModelConfig("tiny", 32)).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model(images)
        rough = model.bfloat16()(images.bfloat16())
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_features_feed_the_head() -> None:
    model = random_model(ModelConfig("tiny", 48)).eval()
    images = torch.randn(2, 3, 48, 48)
    z_BD = model.features(images)
    assert z_BD.shape == (2, ARCHITECTURES["tiny"].width)
    assert torch.equal(model.head(z_BD), model(images))


@pytest.mark.parametrize(("size", "nearest"), [(33, 32), (0, 8), (-16, 8), (225, 224)])
def test_an_image_size_that_does_not_fit(size: int, nearest: int) -> None:
    with pytest.raises(UserError, match=rf"model.image_size {size} is not .* set model.image_size {nearest}$"):
        VisionTransformer(ModelConfig("tiny", size), 10)


# Parameters of timm 1.0.31's deit3_base_patch16 and deit3_large_patch16 (no entry for the class token, LayerScale).
DEIT3 = ModelConfig(gelu="exact", layer_scale=1e-4, class_position=False, initialisation="deit3")
DEIT3_COUNTS = [
    ("b16", 224, 1000, 86_585_320),
    ("b16", 384, 1000, 86_877_160),
    ("b16", 224, 21841, 102_612_049),
    ("l16", 224, 1000, 304_374_760),
    ("l16", 384, 1000, 304_763_880),
]


@pytest.mark.parametrize(("variant", "size", "classes", "count"), DEIT3_COUNTS)
def test_parameter_counts_of_deit3(variant: Variant, size: int, classes: int, count: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer(dataclasses.replace(DEIT3, variant=variant, image_size=size), classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_deit3_is_the_same_function_of_folded_weights() -> None:
    """LayerScale is a factor of the last matrix of its branch; no class entry is an entry of zeros."""
    config = dataclasses.replace(DEIT3, variant="tiny", image_size=32)
    model = random_model(config).double().eval()
    state = dict(model.state_dict())
    plain = VisionTransformer(ModelConfig("tiny", 32, gelu="exact"), 10).double().eval()
    for name in [name for name in state if name.endswith(".gamma")]:
        block, scale, _ = name.rsplit(".", 2)
        last = f"{block}.attn.proj" if scale == "ls1" else f"{block}.mlp.fc2"
        factor = state.pop(name)
        state |= {
            f"{last}.weight": state[f"{last}.weight"] * factor[:, None],
            f"{last}.bias": state[f"{last}.bias"] * factor,
        }
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 128, dtype=torch.float64), state["pos_embed"]], dim=1)
    plain.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)


def test_registers_are_attended_to_and_have_no_position() -> None:
    model = random_model(ModelConfig("tiny", 32, registers=4)).eval()
    assert model.state_dict()["reg_token"].shape == (1, 4, 128)
    assert model.state_dict()["pos_embed"].shape == (1, 17, 128)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(x)
        model.reg_token.copy_(model.reg_token.flip(1))  # without positions their order is nothing
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
        model.reg_token.mul_(3)
        assert (model(x) - before).abs().max() > 1e-3


def test_initialisation_of_deit3() -> None:
    model = VisionTransformer(dataclasses.replace(DEIT3, variant="tiny", image_size=224), 1000)
    initialise(model, 3)
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(".gamma"):
            assert (tensor == 1e-4).all()
        elif name.startswith("patch_embed."):
            bound = 1 / (3 * 8 * 8) ** 0.5
            assert tensor.abs().max() <= bound
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
        elif ".norm" in name or name.startswith("norm"):
            assert (tensor == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias"):
            assert not tensor.any(), name
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.2 if name == "cls_token" else 0.05), name
    assert state["pos_embed"].abs().max() > 0.06, "cut off at 2, not at two deviations"


def test_stochastic_depth_may_be_constant() -> None:
    assert drop_rates(ModelConfig("tiny", stochastic_depth=0.3, stochastic_depth_decay="constant")) == [0.3] * 6
