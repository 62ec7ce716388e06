"""Which numbers a run may have: every field has its range, recipes are inside, and what is outside is named."""

import math

import pytest

from pipeline.config.ranges import RANGES, Range, check
from pipeline.config.recipes import FINETUNE, PRETRAIN
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, from_dict, to_dict
from pipeline.core.errors import UserError


def with_value(name: str, value: float) -> RunConfig:
    tree = to_dict(RunConfig())
    section, field = name.split(".")
    tree[section][field] = value
    return from_dict(RunConfig, tree)


def test_every_number_has_its_range() -> None:
    fields = flatten(to_dict(RunConfig()))
    numbers = {name for name, value in fields.items() if type(value) in (int, float)} | {"data.mixup"}  # None at first
    # checked where they are used: with the data, and by the choices that DeepSpeed has
    assert numbers - RANGES.keys() == {"data.percent", "train.zero_stage"}
    assert RANGES.keys() <= numbers


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_number_outside_is_named_with_its_range(name: str) -> None:
    for value in (-1, math.nan, math.inf, RANGES[name].most + 1):
        if math.isnan(value) or not RANGES[name].holds(value):
            with pytest.raises(UserError, match=f"{name} .* is out of range: give a number of (at least|above) "):
                check(with_value(name, value))
    assert not RANGES[name].holds(-1)


def test_the_ends_of_a_range() -> None:
    share, less, positive = Range(0, 1), Range(0, 1, below=True), Range(above=True)
    assert [share.holds(value) for value in (0, 1, 1.001)] == [True, True, False]
    assert [less.holds(value) for value in (0, 0.999, 1)] == [True, True, False]
    assert [positive.holds(value) for value in (0, 1e-9, 1e30, math.inf)] == [False, True, True, False]
    assert [str(one) for one in (share, less, positive)] == [
        "at least 0 and at most 1",
        "at least 0 and below 1",
        "above 0",
    ]


def test_every_recipe_is_inside() -> None:
    for recipe in (*PRETRAIN.values(), *FINETUNE.values()):
        check(recipe())
