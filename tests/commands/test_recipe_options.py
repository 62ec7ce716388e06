"""RECIPE, --config and the fields of a run on the command line; what its user gave; files fed back."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs import recipe_options
from pipeline.config.recipes import FINETUNE, PRETRAIN, RECIPES, Recipe
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core import arguments
from pipeline.core.errors import UserError
from tests.helpers.launch import REPOSITORY

ALL = [(stage, name) for stage, recipes in RECIPES.items() for name in recipes]


def parse(stage: str, *args: object) -> tuple[RunConfig, frozenset[str]]:
    return recipe_options.parse(RECIPES[stage], prog="prog", description="What it does.", args=list(map(str, args)))


def test_fields_replace_the_recipes() -> None:
    tiny = PRETRAIN["tiny"].config
    assert parse("pretrain", "tiny") == (tiny, frozenset())
    config, given = parse("pretrain", "tiny", "--optim.lr", "3e-4", "--name=b", "--data.flip", "False")
    assert given == {"optim.lr", "name", "data.flip"}
    expected = replace(tiny, name="b", optim=replace(tiny.optim, lr=3e-4), data=replace(tiny.data, flip=False))
    assert config == expected


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ((), ["RECIPE is missing", "b16, b32", "prog --help"]),
        (("--optim.lr", "1"), ["RECIPE is missing"]),
        (("tinny",), ["'tinny'", "did you mean tiny?", "b16, b32"]),
        (("xyz",), ["'xyz'", "there are b16, b32"]),
        (("tiny", "--optim.lrr", "1"), ["--optim.lrr", "--optim.lr", "prog tiny --help"]),
        (("tiny", "--optim.lr", "fast"), ["optim.lr", "fast"]),
        (("tiny", "--optim.lr"), ["optim.lr"]),
        (("tiny", "stray"), ["stray"]),
        (("tiny", "--stage", "finetune"), ["--stage finetune", "python -m jobs.finetune"]),
        (("tiny", "--recipe", "b16"), ["--recipe 'b16'", "first argument"]),
        (("tiny", "--schedule.steps", "5", "--schedule.epochs", "5"), ["schedule.steps 5", "schedule.epochs 5"]),
        (("tiny", "--optim.momentum=0.5"), ["optim.momentum 0.5 has no effect without optim.kind sgd"]),
        (("tiny", "--optim.layer-decay", "0.5", "--optim.momentum", "0.5"), ["optim.momentum 0.5 has no effect"]),
        (("tiny", "--config"), ["--config needs the name"]),
        (("tiny", "--config", "a.json", "--config=b.json"), ["--config is given twice"]),
        (("tiny", "--config", "/nowhere.json"), ["--config '/nowhere.json'", "No such file"]),
    ],
)
def test_a_mistake_is_named_in_one_line(args: tuple[str, ...], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse("pretrain", *args)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert not set(message) & set("╭╮╰╯│─")


@pytest.mark.parametrize("form", ["--optim.layer-decay 0.7", "--optim.layer_decay 0.7", "--optim.layer-decay=0.7"])
def test_both_ways_to_write_an_option_are_known(form: str) -> None:
    assert arguments.given_names(form.split()) == {"optim.layer_decay"}
    assert parse("finetune", "b16", *form.split())[0].optim.layer_decay == 0.7


def test_help_lists_the_recipes_with_their_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("finetune", "--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "What it does." in out
    for name, recipe in FINETUNE.items():
        assert f"  {name:12} {recipe.summary}\n" in out


@pytest.mark.parametrize(("stage", "name"), ALL)
def test_a_saved_configuration_resolves_to_the_same_run(stage: str, name: str, tmp_path: Path) -> None:
    config, _ = parse(stage, name, "--run-dir", "runs/one", "--schedule.steps", 7, "--data.train", "a", "s3://b/c")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert parse(stage, "--config", path)[0] == config


def test_options_win_over_the_file(tmp_path: Path) -> None:
    config, _ = parse("finetune", "b16", "--run-dir", "runs/one", "--parent", "runs/b16")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert parse("finetune", "b16", f"--config={path}")[0] == config
    again, _ = parse("finetune", "--config", path, "--run-dir", "runs/two", "--optim.lr", 0.25)
    assert again == replace(config, run_dir=Path("runs/two"), optim=replace(config.optim, lr=0.25))


def test_epochs_given_for_a_fine_tuning_come_back_from_the_file(tmp_path: Path) -> None:
    config, _ = parse("finetune", "b16", "--schedule.epochs", 3, "--parent", "scratch")
    assert (config.schedule.steps, config.schedule.epochs) == (0, 3.0)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert parse("finetune", "--config", path)[0] == config


def test_a_file_of_a_few_fields_stands_on_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("optim.lr: 3e-4\nschedule: {epochs: 5}\ndata:\n  train: [shards/a]\n  mixup: 0.1\n")
    config, given = parse("finetune", "b16", "--config", path)
    assert given == {"optim.lr", "schedule.epochs", "data.train", "data.mixup"}
    flat, recipe = flatten(to_dict(config)), flatten(to_dict(FINETUNE["b16"].config))
    changed = {name: value for name, value in flat.items() if value != recipe[name]}
    assert changed == {
        "optim.lr": 3e-4, "schedule.epochs": 5.0, "schedule.steps": 0, "data.train": ["shards/a"], "data.mixup": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"optim": {"lerning_rate": 1}}', ["'optim.lerning_rate' is unknown"]),
        ('{"optim": {"momentun": 0.5}}', ["'optim.momentun' is unknown: did you mean optim.momentum?"]),
        ('{"optm": {"lr": 1}}', ["'optm' is unknown: did you mean optim?"]),
        ('{"optim": 3}', ["'optim' is 3", "section"]),
        ('{"optim": 3, "optim.lr": 3}', ["'optim'", "as a field and as a section"]),
        ('{"optim": {"lr": "fast"}}', ["optim.lr is 'fast': give a number"]),
        ('{"optim": {"lr": true}}', ["optim.lr is True: give a number"]),
        ('{"data": {"workers": 1.5}}', ["data.workers is 1.5: give a whole number"]),
        ('{"data": {"flip": 1}}', ["data.flip is 1: give true or false"]),
        ('{"data": {"train": "shards"}}', ["data.train is 'shards': give a list"]),
        ('{"model": {"mean": [0.5]}}', ["model.mean is [0.5]: give a list of 3"]),
        ('{"optim": {"kind": "adam"}}', ["optim.kind is 'adam': give one of adamw, lamb, sgd"]),
        ('{"train": {"zero_stage": true}}', ["train.zero_stage is True: give one of 0, 1, 2, 3"]),
        ('{"name": null}', ["name is None: give a string"]),
        ('{"schedule": {"steps": 3, "epochs": 3}}', ["schedule.steps 3 and schedule.epochs 3 are both given"]),
        ('{"recipe": "b16"}', ["RECIPE is 'tiny'", "is for recipe 'b16'"]),
        ('{"stage": "finetune"}', ["is for another command: use python -m jobs.finetune"]),
        ("[1]", ["has no fields"]),
        ("{", ["can't be read", "JSON or YAML"]),
    ],
)
def test_a_mistake_in_a_file_is_named(text: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        parse("pretrain", "tiny", "--config", path)
    for part in parts:
        assert part in str(caught.value)


def test_a_yaml_file_runs_no_code_and_is_one_line_when_broken(tmp_path: Path) -> None:
    for text in ("!!python/object/apply:os.system [touch ran]", "a: [1", "a: b: c"):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match="can't be read") as caught:
            parse("pretrain", "tiny", "--config", tmp_path / "mine.yaml")
        assert "\n" not in str(caught.value)


def test_the_fields_of_a_wrapper_are_parsed_beside() -> None:
    recipes: dict[str, Recipe] = PRETRAIN
    pair, given = recipe_options.parse_into(lambda run: run, recipes, prog="p", description="", args=["b32"])
    assert (pair, given) == (PRETRAIN["b32"].config, frozenset())


def test_help_without_docstrings() -> None:
    """python -OO drops docstrings; the help of recipes must not need them."""
    for words, part in ((("--help",), "AugReg B/16"), (("tiny", "--help"), "Peak learning rate")):
        command = [sys.executable, "-OO", "-m", "jobs.pretrain", *words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert part in done.stdout
