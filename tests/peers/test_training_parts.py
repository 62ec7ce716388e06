"""The parts of DeiT III's training against timm's own: LAMB, layer-wise learning rates, RandAugment, CutMix's boxes."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from benchmarks.peers import import_peer
from pipeline.config.schema import ModelConfig, OptimConfig
from pipeline.engine.optimizer import build, parameter_groups
from pipeline.loader.timm_randaugment import OPERATIONS
from pipeline.model.initialisation import initialise
from pipeline.model.vit import VisionTransformer
from pipeline.train.mixup import cutmix_box

pytestmark = pytest.mark.peers


def peer(name: str) -> Any:
    import_peer("timm")
    return import_peer(name)


@pytest.mark.parametrize("decay", [0.65, 0.75])
def test_layer_decay_groups_are_timms(decay: float) -> None:
    ours = VisionTransformer(ModelConfig("b32"), 10)
    theirs = peer("timm").create_model("vit_base_patch32_224", num_classes=10)
    groups = peer("timm.optim").param_groups_layer_decay(
        theirs, 0.1, layer_decay=decay, no_weight_decay_list=theirs.no_weight_decay()
    )
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    found = {
        names[id(p)]: (g["lr_scale"], g["weight_decay"])
        for g in parameter_groups(ours, 0.1, decay)
        for p in g["params"]
    }
    assert found == expected


def test_lamb_is_timms() -> None:
    models = [VisionTransformer(ModelConfig("tiny", 16), 3) for _ in range(2)]
    for model in models:
        initialise(model, 0)
    ours = build(OptimConfig("lamb", lr=1e-2, weight_decay=0.02), models[0])
    theirs = peer("timm.optim").Lamb(parameter_groups(models[1], 0.02), lr=1e-2, max_grad_norm=None)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_rand_augment_operations_are_timms() -> None:
    augment = peer("timm.data.auto_augment")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Pillow.fromarray(noise).resize((48, 48), Pillow.Resampling.BICUBIC)
    settings = {"img_mean": (124, 116, 104), "interpolation": Pillow.Resampling.BICUBIC}
    for ours, theirs in zip(OPERATIONS, augment._RAND_INCREASING_TRANSFORMS, strict=True):
        assert theirs.startswith(ours)
        for magnitude in (9.0, 8.3, 5.0):
            seen = set()
            for seed in range(8):  # until both signs have come
                random.seed(seed)
                operation = augment.AugmentOp(theirs, prob=1.0, magnitude=magnitude, hparams=settings)
                seen.add(np.asarray(operation(image)).tobytes())
            assert seen == {
                np.asarray(OPERATIONS[ours](image, magnitude / 10, sign)).tobytes() for sign in (1.0, -1.0)
            }, (ours, magnitude)


def test_cutmix_boxes_have_timms_sizes() -> None:
    """The same lambda gives the same box about the same pixel."""
    mixup = peer("timm.data.mixup")
    for step in range(200):
        drawn = np.random.Generator(np.random.SFC64([7, step, 0x637574]))
        lam, centre = drawn.beta(1.0, 1.0), [int(pixel) for pixel in drawn.integers(48, size=2)]
        how = cutmix_box(7, step, 48, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *_, centre=centre, **__: centre.pop(0))
            box, weight = mixup.cutmix_bbox_and_lam((3, 48, 48), lam)
        assert how.box is not None
        assert tuple(int(edge) for edge in box) == tuple(how.box)
        assert how.weight == pytest.approx(float(weight))
