"""The recipes against the published tables, typed in here once more, and what they resolve to on 1, 8 and 64 GPUs."""

from collections.abc import Callable

import pytest

from pipeline.config.recipes import FINETUNE, FINETUNE_RATES, PRETRAIN
from pipeline.config.schema import RunConfig, accumulation, flatten, to_dict, total_steps
from pipeline.engine.deepspeed_engine import deepspeed_config
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
EXPECTED = {
    ("pretrain", "b16"): AUGREG | {"model.variant": "b16", "data.augment": "medium1"},
    ("pretrain", "b32"): AUGREG | {"model.variant": "b32", "data.augment": "light1"},
    ("pretrain", "l16"): AUGREG | {"model.variant": "l16", "data.augment": "strong1"},
    ("pretrain", "l32"): AUGREG | {"model.variant": "l32", "data.augment": "strong1"},
    **{("pretrain", f"{name}_paper"): PAPER | {"model.variant": name} for name in ("b16", "b32", "l16", "l32")},
    **{("finetune", name): TABLE_4 | {"model.variant": name} for name in ("b16", "b32", "l16", "l32")},
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
ALL = {("pretrain", name): make for name, make in PRETRAIN.items()}
ALL |= {("finetune", name): make for name, make in FINETUNE.items()}


def test_every_published_recipe_is_in_the_tables() -> None:
    assert ALL.keys() - EXPECTED.keys() == {("pretrain", "tiny"), ("finetune", "tiny")}


@pytest.mark.parametrize(("stage", "name"), EXPECTED)
def test_values_of_the_tables(stage: str, name: str) -> None:
    config = flatten(to_dict(ALL[stage, name]()))
    expected = EXPECTED[stage, name]
    assert {key: config[key] for key in expected} == expected
    assert 0.003 <= config["optim.lr"] <= 0.06 if stage == "finetune" else config["optim.lr"] == 1e-3


def test_fine_tuning_rate_is_one_of_table_4() -> None:
    assert FINETUNE_RATES == (0.003, 0.01, 0.03, 0.06)
    assert {make().optim.lr for name, make in FINETUNE.items() if name != "tiny"} <= set(FINETUNE_RATES)


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
    assert count_parameters(FINETUNE[name](), 1000) == parameters


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_resolves_on_1_8_and_64_gpus(stage: str, name: str) -> None:
    config = ALL[stage, name]()
    assert (config.stage, config.recipe) == (stage, name)
    for gpus in (1, 2) if name == "tiny" else (1, 8, 64):
        passes = accumulation(config.train, gpus)
        assert passes * config.train.micro_batch * gpus == config.train.global_batch
        settings = deepspeed_config(config, gpus)
        assert settings["train_batch_size"] == config.train.global_batch
        assert settings["gradient_accumulation_steps"] == passes
    assert grid_size(config.model) ** 2 > 0


@pytest.mark.parametrize(
    ("name", "steps"), [("b16_paper", 272_461), ("l16_paper", 272_461), ("b16", 908_203), ("l32", 908_203)]
)
def test_epochs_become_the_published_steps(name: str, steps: int) -> None:
    config = PRETRAIN[name]()
    assert total_steps(config.schedule, IMAGENET_21K, config.train.global_batch) == steps


@pytest.mark.parametrize("make", ALL.values())
def test_docstrings_give_source_command_and_target(make: Callable[[], RunConfig]) -> None:
    text = make.__doc__ or ""
    config = make()
    assert f"python -m jobs.{config.stage} {config.recipe} " in text
    assert "--run-dir" in text
    assert "arget" in text
    assert config.recipe == "tiny" or "AugReg" in text or "Paper" in text
