"""The same weights give timm's and transformers' logits, in both directions of every format."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.peers import import_peer
from pipeline.config.schema import ModelConfig, Variant
from pipeline.interop import huggingface, npz, timm
from pipeline.model.vit import ARCHITECTURES, VisionTransformer
from tests.helpers.models import random_model

pytestmark = pytest.mark.peers

TOLERANCE = 1e-5  # of the largest logit: float32 sums run in another order on each maker's CPU
CLASSES = 11


def assert_same_logits(theirs_BC: torch.Tensor, ours_BC: torch.Tensor) -> None:
    largest = max(1.0, float(ours_BC.abs().max()))
    torch.testing.assert_close(theirs_BC, ours_BC, rtol=0, atol=TOLERANCE * largest)


@pytest.fixture(params=["b16", "b32", "l16", "l32", "tiny"])
def shallow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> VisionTransformer:
    """Each variant with two blocks, at its own width, heads and patch; random weights, head included."""
    variant: Variant = request.param
    monkeypatch.setitem(ARCHITECTURES, variant, dataclasses.replace(ARCHITECTURES[variant], depth=2))
    return random_model(ModelConfig(variant, 3 * ARCHITECTURES[variant].patch), CLASSES).eval()


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


@torch.no_grad()
def timms_logits(model: VisionTransformer, folder: Path) -> Tensor:
    """By timm's own loader of the folder that we write."""
    timm.write(folder, model.config, model.state_dict(), [f"class{index}" for index in range(CLASSES)])
    theirs = import_peer("timm").create_model(f"local-dir:{folder}", pretrained=True).eval()
    return theirs(images(model.config.image_size))  # type: ignore[no-any-return]


@torch.no_grad()
def transformers_logits(model: VisionTransformer, folder: Path) -> Tensor:
    huggingface.write(folder, model.config, model.state_dict(), [f"class{index}" for index in range(CLASSES)])
    theirs = import_peer("transformers").AutoModelForImageClassification.from_pretrained(folder).eval()
    return theirs(images(model.config.image_size)).logits  # type: ignore[no-any-return]


@torch.no_grad()
def test_timm_gives_our_logits(shallow: VisionTransformer, tmp_path: Path) -> None:
    ours = shallow(images(shallow.config.image_size))
    assert_same_logits(timms_logits(shallow, tmp_path), ours)
    config, state, facts = timm.read(tmp_path)
    assert (config, facts["classes"]) == (shallow.config, CLASSES)
    assert all(torch.equal(state[name], tensor) for name, tensor in shallow.state_dict().items())


@torch.no_grad()
def test_transformers_gives_our_logits(shallow: VisionTransformer, tmp_path: Path) -> None:
    ours = shallow(images(shallow.config.image_size))
    assert_same_logits(transformers_logits(shallow, tmp_path), ours)
    config, state, facts = huggingface.read(tmp_path)
    assert (config, facts["classes"]) == (shallow.config, CLASSES)
    assert all(torch.equal(state[name], tensor) for name, tensor in shallow.state_dict().items())


@torch.no_grad()
def test_what_transformers_saves_is_read(shallow: VisionTransformer, tmp_path: Path) -> None:
    """With transformers' own defaults, the exact GELU and an epsilon of 1e-12, and no weight of ours in it."""
    transformers = import_peer("transformers")
    sizes = ARCHITECTURES[shallow.config.variant]
    torch.manual_seed(3)
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=sizes.width,
            num_hidden_layers=2,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.mlp,
            image_size=shallow.config.image_size,
            patch_size=sizes.patch,
            num_labels=CLASSES,
        )
    ).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.02)
    theirs.save_pretrained(tmp_path)
    config, state, _ = huggingface.read(tmp_path)
    assert (config.gelu, config.norm_eps) == ("exact", 1e-12)
    model = VisionTransformer(config, CLASSES).eval()
    model.load_state_dict(state)
    x = images(config.image_size)
    assert_same_logits(model(x), theirs(x).logits)


@torch.no_grad()
def test_timm_reads_our_npz(tmp_path: Path) -> None:
    """B/32 whole, through the official format, by timm's reader of Google's files."""
    model = random_model(ModelConfig("b32", 224), CLASSES).eval()
    path = tmp_path / "B_32.npz"
    npz.write(path, model.config, model.state_dict())
    theirs = import_peer("timm").create_model("vit_base_patch32_224", num_classes=CLASSES, act_layer="gelu_tanh").eval()
    theirs.load_pretrained(str(path))
    x = images(224)
    assert_same_logits(theirs(x), model(x))
    _, state, _ = npz.read(path)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_whole_b32(tmp_path: Path) -> None:
    model = random_model(ModelConfig("b32", 224), CLASSES).eval()
    ours = model(images(224))
    assert_same_logits(timms_logits(model, tmp_path / "timm"), ours)
    assert_same_logits(transformers_logits(model, tmp_path / "hf"), ours)


@torch.no_grad()
@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize(("variant", "name"), [("b16", "deit3_base_patch16"), ("l16", "deit3_large_patch16")])
def test_deit3_gives_timms_logits(
    variant: Variant, name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's own deit3 entry points take our state dict as it is; and its loader takes the folder that we write."""
    monkeypatch.setitem(ARCHITECTURES, variant, dataclasses.replace(ARCHITECTURES[variant], depth=3))
    config = ModelConfig(variant, size, gelu="exact", layer_scale=1e-4, class_position=False)
    model = random_model(config, CLASSES).eval()
    ours = model(images(size))
    theirs = import_peer("timm").create_model(f"{name}_{size}", num_classes=CLASSES, depth=3).eval()
    theirs.load_state_dict(model.state_dict())
    assert_same_logits(theirs(images(size)), ours)
    assert_same_logits(timms_logits(model, tmp_path), ours)


def test_decay_groups_are_timms() -> None:
    from pipeline.engine.optimizer import parameter_groups

    import_peer("timm")
    optim = import_peer("timm.optim")
    model = VisionTransformer(ModelConfig("b32"), 10)
    no_decay, decay = optim.param_groups_weight_decay(model, 0.1, no_weight_decay_list=("pos_embed", "cls_token"))
    ours = {group["weight_decay"]: {id(p) for p in group["params"]} for group in parameter_groups(model, 0.1)}
    assert ours[0.1] == {id(p) for p in decay["params"]}
    assert ours[0.0] == {id(p) for p in no_decay["params"]}
    assert len(decay["params"]) == 50
