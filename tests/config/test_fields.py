"""What is known of each field stands on the field, ranges are held, and no other file keeps a list of fields."""

import ast
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipeline.config.facts import FREE as MAY_CHANGE
from pipeline.config.facts import Range
from pipeline.config.fields import (
    FIELDS,
    FREE,
    HIDDEN,
    INHERITED,
    OWN,
    PATHS,
    RETUNED,
    UNLIKE_SEEDS,
    check_ranges,
    facts_of,
)
from pipeline.config.recipes import FINETUNE, PRETRAIN
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core.errors import UserError

REPOSITORY = Path(__file__).parents[2]
RANGES = {name: facts.limits for name, facts in FIELDS.items() if facts.limits is not None}
TYPED = {"train.zero_stage"}  # a number whose type lists its values


SEVERAL = {"model.mean", "model.std", "data.weights"}  # fields of several numbers


def with_value(name: str, number: float) -> RunConfig:
    section, field = name.split(".")
    config, value = RunConfig(), (0.5, number, 0.5) if name in SEVERAL else number
    return replace(config, **{section: replace(getattr(config, section), **{field: value})})


def test_every_field_has_its_facts() -> None:
    assert FIELDS.keys() == flatten(to_dict(RunConfig())).keys()

    @dataclass(frozen=True)
    class Undecided:
        lr: float = 0.1

    with pytest.raises(KeyError):
        facts_of(Undecided)


def test_every_number_has_its_range() -> None:
    values = flatten(to_dict(RunConfig()))
    numbers = {name for name, value in values.items() if type(value) in (int, float)} | {
        "data.mixup",
        "checkpoint.minutes",
    }  # None at first
    assert RANGES.keys() == (numbers | SEVERAL) - TYPED


def test_the_sets_of_fields() -> None:
    places = {"run_dir", "parent", "sweep", "data.train", "data.eval", "data.cache"}
    assert places | {"data.classes"} == PATHS
    assert places | {"name", "experiment", "recipe", "data.cache_gb"} == HIDDEN
    assert HIDDEN - {"recipe"} | {"train.seed"} == UNLIKE_SEEDS
    assert {"run_dir", "name"} == OWN
    assert {"optim.lr", "optim.clip"} == RETUNED
    assert {"model.mean", "model.std"} == INHERITED
    assert places | RETUNED <= FREE
    assert not FREE & (INHERITED | {"train.seed", "train.global_batch", "data.classes", "optim.kind", "model.variant"})
    assert FIELDS["train.micro_batch"].resume == MAY_CHANGE


def test_no_other_file_lists_fields() -> None:
    """A list, set or dict of dotted names beside the schema would have to be kept in step with it by hand."""
    recipes = {REPOSITORY / "pipeline" / "config" / name for name in ("recipes.py",)}
    sources = [path for folder in ("pipeline", "jobs") for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(sources) > 100
    found = []
    for path in set(sources) - recipes:
        for node in ast.walk(ast.parse(path.read_text())):
            items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
            names = [item.value for item in items if isinstance(item, ast.Constant) and item.value in FIELDS]
            if any("." in name for name in names) or (isinstance(node, ast.Set) and names and len(names) == len(items)):
                found.append(f"{path.relative_to(REPOSITORY)}:{node.lineno} {names}")  # type: ignore[attr-defined]
    assert not found


@pytest.mark.parametrize("name", sorted(RANGES))
def test_a_number_outside_is_named_with_its_range(name: str) -> None:
    for value in (-1, math.nan, math.inf, RANGES[name].most + 1):
        if math.isnan(value) or not RANGES[name].holds(value):
            with pytest.raises(UserError, match=f"{name} .* is out of range: give a number of (at least|above) "):
                check_ranges(with_value(name, value))
    assert RANGES[name].holds(-1) == (name == "model.mean")


def test_the_ends_of_a_range() -> None:
    share, less, positive = Range(0, 1), Range(0, 1, below=True), Range(above=True)
    assert [share.holds(value) for value in (0, 1, 1.001)] == [True, True, False]
    assert [less.holds(value) for value in (0, 0.999, 1)] == [True, True, False]
    assert [positive.holds(value) for value in (0, 1e-9, 1e30, math.inf)] == [False, True, True, False]
    assert not positive.holds(10**400)  # more than a float holds
    assert [str(one) for one in (share, less, positive)] == [
        "at least 0 and at most 1",
        "at least 0 and below 1",
        "above 0",
    ]


def test_every_recipe_is_inside() -> None:
    for recipe in (*PRETRAIN.values(), *FINETUNE.values()):
        check_ranges(recipe.config)
