"""No option that a user gives is without effect in silence: alternatives are settled, the rest is refused."""

from pathlib import Path

import pytest

from pipeline.config.fields import FIELDS
from pipeline.config.given import settle
from pipeline.config.recipes import FINETUNE, PRETRAIN, RECIPES
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, to_dict, with_values
from pipeline.core.errors import UserError


def given(stage: str, recipe: str, /, **values: object) -> RunConfig:
    """The settled recipe with these options: ``schedule__steps=5`` is ``--schedule.steps 5``."""
    options = {name.replace("__", "."): value for name, value in values.items()}
    return settle(with_values(RECIPES[stage][recipe].config, options), options)


# option given -> what the message says of it
WITHOUT_EFFECT: list[tuple[str, str, dict[str, object], str]] = [
    ("pretrain", "b16", {"model__stochastic_depth_decay": "constant"}, "set model.stochastic_depth"),
    ("pretrain", "b16", {"model__position_resize": "bicubic"}, "jobs.finetune --parent"),
    ("finetune", "b16", {"model__position_resize": "bicubic", "parent": "scratch"}, "without a parent"),
    ("pretrain", "b16", {"data__weights": [2.0], "data__train": ["a"]}, "single training dataset"),
    ("pretrain", "b16", {"data__cache": "/ssd", "data__train": ["a"]}, "at a URL"),
    ("pretrain", "b16", {"data__cache_gb": 5.0, "data__train": ["a"]}, "at a URL"),
    ("pretrain", "b16", {"data__min_area": 0.5, "data__crop": "resize"}, "set data.crop inception"),
    ("pretrain", "b16_deit3", {"data__min_area": 0.5}, "set data.crop inception"),
    ("pretrain", "b16_deit3", {"data__interpolation": "bilinear"}, "always bicubic"),
    ("pretrain", "b16_deit3", {"data__decode": "full"}, "set data.decode scaled"),
    ("finetune", "b16", {"optim__beta1": 0.95}, "with optim.kind sgd"),
    ("finetune", "b16", {"optim__beta2": 0.95}, "with optim.kind sgd"),
    ("pretrain", "b16", {"optim__momentum": 0.8}, "set optim.kind sgd"),
    ("pretrain", "b16_deit3", {"optim__momentum": 0.8}, "set optim.kind sgd"),
    ("pretrain", "b16", {"schedule__start_lr": 1e-5, "schedule__warmup_steps": 0}, "without a warm-up"),
    ("pretrain", "b16", {"schedule__end_lr": 1e-5, "schedule__decay": "constant"}, "cosine or linear"),
    ("pretrain", "b16", {"train__eval_every": 10, "data__eval_split": "none"}, "data.eval_split none"),
    ("pretrain", "b16", {"train__eval_batch": 10, "data__eval_split": "none"}, "data.eval_split none"),
    ("pretrain", "b16", {"train__rollback_nonfinite": 1, "checkpoint__every": 0}, "only the last step is saved"),
    ("pretrain", "b16", {"checkpoint__keep_last": 3, "checkpoint__every": 0}, "only the last step is saved"),
    ("pretrain", "b16", {"checkpoint__keep_every": 5, "checkpoint__every": 0}, "only the last step is saved"),
    ("pretrain", "b16", {"checkpoint__keep_best": 2, "checkpoint__every": 0}, "unless checkpoints are written"),
    ("pretrain", "b16", {"checkpoint__keep_best": 2, "train__eval_every": 0}, "unless checkpoints are written"),
]


@pytest.mark.parametrize(("stage", "recipe", "options", "part"), WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused(stage: str, recipe: str, options: dict[str, object], part: str) -> None:
    first = next(iter(options)).replace("__", ".")
    with pytest.raises(UserError, match="has no effect") as caught:
        given(stage, recipe, **options)
    message = str(caught.value)
    assert message.startswith(f"{first} ")
    assert part in message
    assert "leave it out, or " in message


def test_a_folder_with_the_index_of_tars_on_the_hub_needs_the_cache(tmp_path: Path) -> None:
    options = {"data__cache": "/ssd", "data__train": [str(tmp_path)]}
    info = tmp_path / "dataset.json"
    info.write_text('{"options": {"made_by": "data_prep.index"}}')
    with pytest.raises(UserError, match="at a URL"):
        given("pretrain", "b16", **options)
    info.write_text('{"options": {"tars": "hf://datasets/timm/imagenet-12k-wds@0123"}}')
    given("pretrain", "b16", **options)


def test_every_need_is_in_the_table() -> None:
    tested = {next(iter(options)).replace("__", ".") for _, _, options, _ in WITHOUT_EFFECT}
    assert tested == {name for name, facts in FIELDS.items() if facts.needs is not None}


@pytest.mark.parametrize(
    ("stage", "recipe", "options"),
    [
        ("pretrain", "b16", {"model__stochastic_depth_decay": "constant", "model__stochastic_depth": 0.1}),
        ("finetune", "b16", {"model__position_resize": "bicubic", "parent": "runs/b16"}),
        ("pretrain", "b16", {"data__weights": [1.0, 2.0], "data__train": ["a", "b"]}),
        ("pretrain", "b16", {"data__cache_gb": 5.0, "data__train": ["a"], "data__eval": "s3://b/c"}),
        ("pretrain", "b16", {"data__cache_gb": 5.0, "data__train": ["pipe:cat a/{}"]}),
        ("pretrain", "b16_deit3", {"data__decode": "scaled"}),
        ("finetune", "b16", {"optim__momentum": 0.8}),
        ("finetune", "b16_deit3", {"optim__beta2": 0.95}),
        ("pretrain", "b16", {"checkpoint__keep_last": 3, "checkpoint__every": 0, "checkpoint__minutes": 5.0}),
        ("pretrain", "b16", {"train__eval_every": 10, "data__eval_split": "test", "data__eval": "d"}),
        # nothing is asked for
        ("pretrain", "b16", {"checkpoint__keep_best": 0, "checkpoint__every": 0}),
        ("pretrain", "b16", {"train__eval_every": 0, "data__eval_split": "none"}),
        ("pretrain", "b16", {"schedule__end_lr": 0.0, "schedule__decay": "constant"}),
    ],
)
def test_an_option_with_an_effect_is_taken(stage: str, recipe: str, options: dict[str, object]) -> None:
    flat = flatten(to_dict(given(stage, recipe, **options)))
    assert {name: flat[name.replace("__", ".")] for name in options} == options


@pytest.mark.parametrize(
    ("stage", "recipe", "options", "expected"),  # steps, epochs, warmup_steps, warmup_epochs
    [
        ("finetune", "b16", {"schedule__epochs": 8.0}, (0, 8.0, 500, 0.0)),
        ("pretrain", "b16", {"schedule__steps": 700}, (700, 0.0, 10_000, 0.0)),
        ("pretrain", "b16", {"schedule__epochs": 30.0}, (0, 30.0, 10_000, 0.0)),
        ("finetune", "b16", {"schedule__steps": 0, "schedule__epochs": 8.0}, (0, 8.0, 500, 0.0)),
        ("finetune", "b16", {"schedule__epochs": 0.0}, (20_000, 0.0, 500, 0.0)),
        # the recipe's warm-up keeps its share of the run: 5 of 50 epochs
        ("finetune", "b16_deit3_224", {"schedule__steps": 1000}, (1000, 0.0, 100, 0.0)),
        ("finetune", "b16_deit3_224", {"schedule__warmup_steps": 7}, (0, 50.0, 7, 0.0)),
        ("finetune", "b16_deit3_224", {"schedule__warmup_steps": 0}, (0, 50.0, 0, 0.0)),
        ("finetune", "b16_deit3_224", {"schedule__steps": 1000, "schedule__warmup_steps": 7}, (1000, 0.0, 7, 0.0)),
        ("pretrain", "b16", {"schedule__warmup_epochs": 3.0}, (0, 300.0, 0, 3.0)),
        ("pretrain", "b16", {"schedule__warmup_epochs": 0.0}, (0, 300.0, 0, 0.0)),
    ],
)
def test_what_was_given_replaces_the_recipe_s_alternative(
    stage: str, recipe: str, options: dict[str, object], expected: tuple[float, ...]
) -> None:
    schedule = given(stage, recipe, **options).schedule
    assert (schedule.steps, schedule.epochs, schedule.warmup_steps, schedule.warmup_epochs) == expected


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"schedule__steps": 5, "schedule__epochs": 2.0}, ("schedule.steps 5", "schedule.epochs 2", "one of them out")),
        ({"schedule__warmup_steps": 5, "schedule__warmup_epochs": 2.0}, ("schedule.warmup_steps 5", "one of them out")),
        ({"schedule__steps": 5, "schedule__warmup_epochs": 2.0}, ("schedule.warmup_epochs 2", "warmup_steps instead")),
        ({"recipe": "mine"}, ("--recipe 'mine'", "first argument")),
    ],
)
def test_what_contradicts_is_refused(options: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        given("pretrain", "b16_deit3", **options)
    for part in parts:
        assert part in str(caught.value)


def test_a_recipe_s_own_values_are_never_complained_of() -> None:
    for recipe in (*PRETRAIN.values(), *FINETUNE.values()):
        assert settle(recipe.config, ()) == recipe.config
        assert settle(recipe.config, {"run_dir"}) == recipe.config


def test_paths_and_lists_are_written_as_on_the_command_line() -> None:
    config = with_values(
        PRETRAIN["b16"].config, {"data.train": ["one"], "data.weights": [1.0], "data.cache": Path("c")}
    )
    with pytest.raises(UserError, match=r"^data\.weights 1\.0 has no effect"):
        settle(config, {"data.weights"})
    with pytest.raises(UserError, match=r"^data\.cache c has no effect"):
        settle(config, {"data.cache"})
