"""The command line of a run, ``RECIPE [--config FILE] [--field value ...]``, which several commands take."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config.fields import FIELDS
from pipeline.config.given import settle
from pipeline.config.recipes import Recipe
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, nest, to_dict, update
from pipeline.core import arguments, cli, errors
from pipeline.core.errors import UserError

Config = TypeVar("Config")


def parse(
    recipes: Mapping[str, Recipe], *, prog: str, description: str, args: Sequence[str] | None = None
) -> tuple[RunConfig, frozenset[str]]:
    """The run that a command line asks for, and the fields that its user gave.

    Raises UserError for another command's stage, a contradiction, or an option without effect.
    """
    config, given = parse_into(lambda config: config, recipes, prog=prog, description=description, args=args)
    stage = next(iter(recipes.values())).config.stage
    if config.stage != stage:
        raise UserError(f"--stage {config.stage} belongs to another command: use python -m jobs.{config.stage}")
    return settle(config, given), given


def parse_into(
    wrap: Callable[[RunConfig], Config],
    recipes: Mapping[str, Recipe],
    *,
    prog: str,
    description: str,
    args: Sequence[str] | None = None,
) -> tuple[Config, frozenset[str]]:
    """The options of ``wrap(recipe)``, which may have more than a run's, and the run's fields that the user gave.

    Not settled yet (:func:`pipeline.config.given.settle`).
    """
    args = cli.without_local_rank(sys.argv[1:] if args is None else args)
    if args and args[0] in ("-h", "--help"):
        print_recipes(recipes, prog, description)
        sys.exit(errors.EXIT_DONE)
    name = args.pop(0) if args and not args[0].startswith("-") else ""
    file, args = _take_config(args)
    args = arguments.normalised(args, RunConfig, flags=False)
    tree = read_config(file) if file is not None else {}
    recipe = _choose(recipes, name, tree, file, prog)
    base = recipe.config
    try:
        config = update(base, tree)
    except UserError as error:
        raise UserError(f"--config {str(file)!r}: {error}") from error
    before, after = flatten(to_dict(base)), flatten(to_dict(config))
    given = (arguments.given_names(args) & FIELDS.keys()) | {name for name in FIELDS if before[name] != after[name]}
    default = wrap(config)
    prog = f"{prog} {config.recipe}"
    chosen = cli.parse(type(default), prog=prog, description=description, args=args, default=default, flags=False)
    return chosen, frozenset(given)


def print_recipes(recipes: Mapping[str, Recipe], prog: str, description: str) -> None:
    prog, description = cli.as_called(prog), cli.as_called(description)
    summaries = "\n".join(f"  {name:12} {recipe.summary}" for name, recipe in recipes.items())
    print(f"usage: {prog} RECIPE [--config FILE] [--field value ...]\n\n{description}\n\nRecipes:\n{summaries}\n")
    print(
        f"{prog} RECIPE --help lists the fields of a recipe with their values. --config FILE: take fields from a JSON"
    )
    print("or YAML file, such as a run folder's config.json, which also names its recipe; options override the file.")
    averaged = [name for name, recipe in recipes.items() if recipe.config.train.average]
    print(f"Recipes that average the weights (train.average): {', '.join(averaged) or 'none'}.")


def read_config(path: Path) -> dict[str, Any]:
    """The nested fields of a JSON or YAML file, dotted names allowed. Raises UserError if the file is neither."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"--config {str(path)!r} can't be read ({reason}): name a JSON or YAML file") from error
    try:
        content = _yaml(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except ValueError as error:
        raise UserError(f"--config {str(path)!r} can't be read ({error}): name a JSON or YAML file") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {str(path)!r} has no fields: write them as in a run folder's config.json")
    return nest(content)


def stage(args: Sequence[str]) -> str:
    """The stage in the file of ``--config``; "" without one."""
    file, _ = _take_config(args)
    return "" if file is None else str(read_config(file).get("stage", ""))


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _take_config(args: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of ``--config``, and the other arguments."""
    for place, word in enumerate(args):
        if word == "--config" or word.startswith("--config="):
            value = word.partition("=")[2] if "=" in word else (args[place + 1] if place + 1 < len(args) else "")
            if not value or value.startswith("--"):
                raise UserError("--config needs the name of a JSON or YAML file")
            rest = [*args[:place], *args[place + (1 if "=" in word else 2) :]]
            if any(word == "--config" or word.startswith("--config=") for word in rest):
                raise UserError("--config is given twice: name one file")
            return Path(value), rest
    return None, list(args)


def _choose(recipes: Mapping[str, Recipe], name: str, tree: Mapping[str, Any], file: Path | None, prog: str) -> Recipe:
    """The recipe that the command line or the file names."""
    own = str(tree.get("recipe", ""))
    if name and own and name != own:
        raise UserError(f"RECIPE is {name!r}, but --config {str(file)!r} is for recipe {own!r}: leave RECIPE out")
    name = name or own
    names = ", ".join(recipes)
    if not name:
        raise UserError(f"RECIPE is missing: name one of {names} (see {cli.as_called(prog)} --help)")
    if (stage := tree.get("stage")) not in (None, *{recipe.config.stage for recipe in recipes.values()}):
        raise UserError(f"--config {str(file)!r} is for another command: use python -m jobs.{stage}")
    if name not in recipes:
        close = arguments.nearest(name, recipes)
        hint = f"did you mean {close}? There are" if close else "there are"
        raise UserError(f"RECIPE {name!r} is unknown: {hint} {names}")
    return recipes[name]
