"""Configuration: round trip, derived numbers, messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.recipes import FINETUNE, PRETRAIN, Recipe
from pipeline.config.schema import (
    CheckpointConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    accumulation,
    save_minutes,
    total_steps,
)
from pipeline.config.serialize import flatten, from_dict, to_dict
from pipeline.core.errors import UserError


@pytest.mark.parametrize("recipe", [*PRETRAIN.values(), *FINETUNE.values()])
def test_a_configuration_survives_json(recipe: Recipe) -> None:
    config = replace(recipe.config, run_dir=Path("runs/a"))
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_field_of_another_version_is_named() -> None:
    tree = to_dict(RunConfig())
    tree["optim"]["nesterov"] = True
    with pytest.raises(UserError, match=r"'optim\.nesterov' is unknown"):
        from_dict(RunConfig, tree)


def test_flat_names_are_the_command_lines() -> None:
    assert flatten({"a": 1, "optim": {"lr": 2, "deep": {"x": 3}}}) == {"a": 1, "optim.lr": 2, "optim.deep.x": 3}


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_accumulation_restores_the_global_batch(micro: int, world: int, passes: int) -> None:
    assert accumulation(TrainConfig(global_batch=micro * world * passes, micro_batch=micro), world) == passes


@given(st.integers(1, 5000), st.integers(1, 512), st.integers(1, 64))
def test_the_remedy_for_a_batch_that_does_not_divide_works(global_batch: int, micro: int, world: int) -> None:
    train = TrainConfig(global_batch=global_batch, micro_batch=micro)
    if global_batch % (micro * world) == 0:
        assert accumulation(train, world) * micro * world == global_batch
        return
    with pytest.raises(UserError) as caught:
        accumulation(train, world)
    message = str(caught.value)
    assert f"train.global_batch {global_batch}" in message
    advised = int(message.rsplit(" ", 1)[1])  # the last number of the message
    field = "global_batch" if "choose a train.global_batch" in message else "micro_batch"
    mended = replace(train, **{field: advised})
    if field == "micro_batch":
        assert accumulation(mended, world) * advised * world == global_batch
    else:
        assert mended.global_batch % world == 0


def test_steps_come_from_epochs_once() -> None:
    assert total_steps(ScheduleConfig(epochs=300), samples=14_197_122, global_batch=4096) == 1_039_828
    assert total_steps(ScheduleConfig(steps=7, epochs=300), samples=100, global_batch=10) == 7
    assert total_steps(ScheduleConfig(epochs=0.01), samples=10, global_batch=10) == 1
    with pytest.raises(UserError, match="schedule\\.steps 0 and schedule\\.epochs 0"):
        total_steps(ScheduleConfig(), samples=10, global_batch=10)


@pytest.mark.parametrize(
    ("rule", "train", "minutes"),
    [
        (CheckpointConfig(), TrainConfig(), 5.0),
        (CheckpointConfig(minutes=30.0), TrainConfig(rollback_nonfinite=1), 30.0),
        (CheckpointConfig(minutes=0.0), TrainConfig(), 0.0),
        (CheckpointConfig(every=0), TrainConfig(), 0.0),
        (CheckpointConfig(), TrainConfig(rollback_nonfinite=1), 0.0),
    ],
)
def test_a_lost_node_costs_five_minutes_unless_said_otherwise(
    rule: CheckpointConfig, train: TrainConfig, minutes: float
) -> None:
    assert save_minutes(RunConfig(checkpoint=rule, train=train)) == minutes
