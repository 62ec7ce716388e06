"""The recipes against the published tables, typed in here once more, and what they resolve to on 1, 8 and 64 GPUs."""

import re

import pytest

from pipeline.config.recipes import FINETUNE, FINETUNE_RATES, PRETRAIN, RECIPES, Recipe
from pipeline.config.schema import accumulation, total_steps
from pipeline.config.serialize import flatten, to_dict
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.model.vit import grid_size
from pipeline.preflight.estimates import count_parameters

IMAGENET_21K = 12_400_000  # images left after the broken ones; the steps below are those of the published runs

# Table 3 of the paper, ImageNet-21K rows, with what the released checkpoints show.
PAPER = {
    "optim.kind": "adamw",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.03,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.clip": 0.0,
    "schedule.epochs": 90.0,
    "schedule.steps": 0,
    "schedule.warmup_steps": 10_000,
    "schedule.decay": "linear",
    "schedule.end_lr": 1e-5,
    "train.global_batch": 4096,
    "train.loss": "sigmoid",
    "model.image_size": 224,
    "model.pre_logits": True,
    "model.dropout": 0.1,
    "model.stochastic_depth": 0.0,
    "data.augment": "none",
}
# AugReg's README: what it recommends at 300 epochs.
AUGREG = PAPER | {
    "optim.weight_decay": 0.1,
    "optim.clip": 1.0,
    "schedule.epochs": 300.0,
    "schedule.decay": "cosine",
    "schedule.end_lr": 0.0,
    "model.pre_logits": False,
    "model.dropout": 0.0,
}
# Table 4 of the paper, ImageNet row.
TABLE_4 = {
    "optim.kind": "sgd",
    "optim.momentum": 0.9,
    "optim.weight_decay": 0.0,
    "optim.clip": 1.0,
    "schedule.steps": 20_000,
    "schedule.warmup_steps": 500,
    "schedule.decay": "cosine",
    "train.global_batch": 512,
    "train.loss": "softmax",
    "model.image_size": 384,
    "model.pre_logits": False,
    "train.average": 0.0,
    "data.augment": "none",
}
# AugReg's best L/16, by its file name: L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1
AUGREG_BEST_L16 = AUGREG | {"data.augment": "medium1", "model.dropout": 0.1, "model.stochastic_depth": 0.1}
# facebookresearch/deit, README_revenge.md: "Training on ImageNet-21k", 64 x 4 nodes x 8 GPUs; main.py
DEIT3 = {
    "optim.kind": "lamb",
    "optim.lr": 0.001,
    "optim.weight_decay": 0.02,
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.clip": 1.0,  # apex.optimizers.FusedLAMB's max_grad_norm
    "optim.layer_decay": 1.0,
    "schedule.epochs": 240.0,
    "schedule.steps": 0,
    "schedule.warmup_epochs": 5.0,
    "schedule.warmup_steps": 0,
    "schedule.start_lr": 1e-6,
    "schedule.end_lr": 1e-5,
    "schedule.decay": "cosine",
    "train.global_batch": 64 * 4 * 8,
    "train.loss": "softmax",
    "train.label_smoothing": 0.1,
    "train.average": 0.0,
    "model.image_size": 224,
    "model.pre_logits": False,
    "model.dropout": 0.0,
    "model.stochastic_depth_decay": "constant",  # models_v2.py: dpr = [drop_path_rate for i in range(depth)]
    "model.layer_scale": 1e-4,
    "model.gelu": "exact",
    "model.norm_eps": 1e-6,
    "model.class_position": False,
    "model.registers": 0,
    "model.initialisation": "deit3",
    "model.position_resize": "bicubic",
    "model.mean": [0.485, 0.456, 0.406],
    "model.std": [0.229, 0.224, 0.225],
    "data.augment": "3-augment",
    "data.color_jitter": 0.3,
    "data.mixup": 0.0,
    "data.cutmix": 1.0,
    "data.crop": "simple",
    "data.interpolation": "bicubic",
    "data.flip": True,
    "data.erasing": 0.0,
    "data.eval_resize": "bicubic",  # --eval-crop-ratio 1.0
}
# "finetuning on ImageNet-1k"
DEIT3_224 = DEIT3 | {"optim.lr": 0.0003, "schedule.epochs": 50.0}
# "finetuning for ViT-S, B and L at resolution 384x384": batch 32 x 2 x 8, 16 x 4 x 8; --clip-grad's default is none
DEIT3_384 = DEIT3 | {
    "optim.kind": "adamw",
    "optim.lr": 1e-5,
    "optim.weight_decay": 0.1,
    "optim.clip": 0.0,
    "schedule.epochs": 20.0,
    "train.global_batch": 512,
    "model.image_size": 384,
    "data.augment": "rand-m9-mstd0.5-inc1",
    "data.color_jitter": 0.0,  # timm turns it off beside RandAugment
    "data.mixup": 0.8,
    "data.crop": "inception",
    "data.min_area": 0.08,
}
EXPECTED = {
    ("pretrain", "b16"): AUGREG | {"model.variant": "b16", "data.augment": "medium1"},
    ("pretrain", "b32"): AUGREG | {"model.variant": "b32", "data.augment": "light1"},
    ("pretrain", "l16"): AUGREG_BEST_L16 | {"model.variant": "l16"},
    ("pretrain", "l16_strong1"): AUGREG | {"model.variant": "l16", "data.augment": "strong1"},
    ("pretrain", "l32"): AUGREG_BEST_L16 | {"model.variant": "l32"},
    **{("pretrain", f"{name}_paper"): PAPER | {"model.variant": name} for name in ("b16", "b32", "l16", "l32")},
    **{
        ("finetune", name): TABLE_4 | {"model.variant": name, "optim.lr": rate}
        for name, rate in (("b16", 0.03), ("b32", 0.03), ("l16", 0.01), ("l32", 0.03))
    },
    ("finetune", "l16_strong1"): TABLE_4 | {"model.variant": "l16", "optim.lr": 0.03},
    **{
        ("pretrain", f"{name}_deit3"): DEIT3 | {"model.variant": name, "model.stochastic_depth": drop}
        for name, drop in (("b16", 0.1), ("b32", 0.1), ("l16", 0.3), ("l32", 0.3))
    },
    **{
        ("finetune", f"{name}_deit3_224"): DEIT3_224 | {"model.variant": name, "model.stochastic_depth": drop}
        for name, drop in (("b16", 0.15), ("b32", 0.15), ("l16", 0.4), ("l32", 0.4))
    },
    **{
        ("finetune", f"{name}_deit3"): DEIT3_384 | {"model.variant": name, "model.stochastic_depth": drop}
        for name, drop in (("b16", 0.15), ("b32", 0.15), ("l16", 0.4), ("l32", 0.4))
    },
    # AugReg fine-tunes at 224 px as well; the paper's Table 2 at 512, with averaged weights (section 4.1).
    **{
        ("finetune", f"{name}_224"): TABLE_4 | {"model.variant": name, "model.image_size": 224}
        for name in ("b16", "b32", "l16", "l32")
    },
    **{
        ("finetune", f"{name}_512"): TABLE_4 | {"model.variant": name, "model.image_size": 512, "train.average": 0.9999}
        for name in ("b16", "b32", "l16", "l32")
    },
}
ALL = {(stage, name): recipe for stage, recipes in RECIPES.items() for name, recipe in recipes.items()}


def test_every_published_recipe_is_in_the_tables() -> None:
    assert ALL.keys() - EXPECTED.keys() == {("pretrain", "tiny"), ("finetune", "tiny")}


@pytest.mark.parametrize(("stage", "name"), EXPECTED)
def test_values_of_the_tables(stage: str, name: str) -> None:
    config = flatten(to_dict(ALL[stage, name].config))
    expected = EXPECTED[stage, name]
    assert {key: config[key] for key in expected} == expected
    if "optim.lr" not in expected:
        assert stage == "finetune"
        assert 0.003 <= config["optim.lr"] <= 0.06


def test_fine_tuning_rate_is_one_of_table_4() -> None:
    assert FINETUNE_RATES == (0.003, 0.01, 0.03, 0.06)
    rates = {recipe.config.optim.lr for name, recipe in FINETUNE.items() if name != "tiny" and "deit3" not in name}
    assert rates <= set(FINETUNE_RATES)


@pytest.mark.parametrize(
    ("name", "parameters"),  # with a head of 1000: the position embedding alone grows, by a row a patch
    [
        ("b16_224", 86_567_656),
        ("b16", 86_859_496),
        ("b16_512", 86_567_656 + (32**2 - 14**2) * 768),
        ("l16_512", 304_326_632 + (32**2 - 14**2) * 1024),
        ("l32_512", 306_535_400 + (16**2 - 7**2) * 1024),
    ],
)
def test_parameters_of_the_fine_tuned_models(name: str, parameters: int) -> None:
    assert count_parameters(FINETUNE[name].config, 1000) == parameters


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_resolves_on_1_8_and_64_gpus(stage: str, name: str) -> None:
    config = ALL[stage, name].config
    assert (config.stage, config.recipe) == (stage, name)
    for gpus in (1, 2) if name == "tiny" else (1, 8, 64):
        passes = accumulation(config.train, gpus)
        assert passes * config.train.micro_batch * gpus == config.train.global_batch
        settings = deepspeed_config(config, gpus)
        assert settings["train_batch_size"] == config.train.global_batch
        assert settings["gradient_accumulation_steps"] == passes
    assert grid_size(config.model) ** 2 > 0


@pytest.mark.parametrize(
    ("name", "steps"),
    [("b16_paper", 272_461), ("l16_paper", 272_461), ("b16", 908_203), ("l32", 908_203), ("b16_deit3", 1_453_125)],
)
def test_epochs_become_the_published_steps(name: str, steps: int) -> None:
    config = PRETRAIN[name].config
    assert total_steps(config.schedule, IMAGENET_21K, config.train.global_batch) == steps


@pytest.mark.parametrize("recipe", ALL.values(), ids=lambda recipe: f"{recipe.config.stage} {recipe.config.recipe}")
def test_the_summary_gives_source_and_target(recipe: Recipe) -> None:
    assert "arget" in recipe.summary
    assert "\n" not in recipe.summary
    assert recipe.config.recipe == "tiny" or re.search(r"AugReg|[Pp]aper|DeiT III", recipe.source)
