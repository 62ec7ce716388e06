"""The reference pages that come from the code: commands, configuration fields, recipes. A hook of mkdocs (mkdocs.yml).

Nothing generated is kept in the tree. ``python docs/generate.py PAGE`` prints one page, such as reference/config.md.
"""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.vit import COMMANDS
from pipeline.config import schema
from pipeline.config.fields import FIELDS
from pipeline.config.recipes import FINETUNE, PRETRAIN

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

REPOSITORY = Path(__file__).parents[1]
COLUMNS = 88  # of the help texts
ON_RESUME = {"fixed": "fixed", "free": "may change", "retuned": "may change, logged", "inherited": "fixed"}
# One process prints every command's help: importing the packages twenty times would take a minute
PRINT_HELP = """
import sys
from jobs import vit
for name in vit.COMMANDS:
    print(f"@@@ {name}", flush=True)
    sys.argv = ["vit", name, "--help"]
    try:
        vit.main()
    except SystemExit:
        pass
"""


def commands() -> str:
    """Every command with its own ``--help``."""
    environment = os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HELP], capture_output=True, text=True, check=True, env=environment, cwd=REPOSITORY
    )
    helps = dict(part.split("\n", 1) for part in done.stdout.split("@@@ ")[1:])
    assert set(helps) == set(COMMANDS), done.stdout
    page = [
        "# Commands\n",
        "`vit COMMAND` and `python -m MODULE` are the same. Each text below is the command's own `--help`.\n",
        "| command | module | what it does |\n|---|---|---|",
    ]
    page += [f"| [`vit {name}`](#{name}) | `{module}` | {summary} |" for name, (module, summary) in COMMANDS.items()]
    for name, text in helps.items():
        page.append(f"\n## {name}\n\n```text\n{text.strip()}\n```")
    return "\n".join(page) + "\n"


def config_fields() -> str:
    """Every field of a run's configuration: option, values and range, default, whether it may change, meaning."""
    page = [
        "# Configuration fields\n",
        "Options of `vit pretrain`, `vit finetune` and `vit sweep`. The defaults are those of a bare configuration; "
        "a [recipe](recipes.md) sets its own, which `vit pretrain RECIPE --help` lists. *On resume* says whether a "
        "resumed run may have another value than it started with.\n",
    ]
    for title, prefix, kind in [("Run", "", schema.RunConfig), *_groups(schema.RunConfig)]:
        page.append(f'\n## {title}\n\n<div class="options" markdown>\n')
        page.append("| option | values | default | on resume | meaning |\n|---|---|---|---|---|")
        meanings = dict(_field_docstrings(kind))
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.default):
                continue
            option = f"--{prefix}{field.name.replace('_', '-')}"
            facts = FIELDS[prefix + field.name]
            values = _type_name(typing.get_type_hints(kind)[field.name]) + (f", {facts.limits}" if facts.limits else "")
            default = "" if field.default in ("", Path(), None, ()) else f"`{field.default}`"
            cells = (f"`{option}`", values, default, ON_RESUME[facts.resume], _cell(meanings.get(field.name, "")))
            page.append(f"| {' | '.join(cells)} |")
        page.append("\n</div>")
    return "\n".join(page) + "\n"


def recipes() -> str:
    """Every recipe with its first line and the numbers that differ from one to the next."""
    page = [
        "# Recipes\n",
        "`vit pretrain RECIPE` and `vit finetune RECIPE`. Targets are published figures, with the source beside them: "
        "top-1 on ImageNet-2012's validation set in percent. None of them was measured by this project, which has not "
        "yet trained a model of these sizes to the end. Averaged weights: decay of the running average "
        "(`--train.average`) that is evaluated and saved beside the trained weights.\n",
    ]
    for title, table in (("Pretraining", PRETRAIN), ("Fine-tuning", FINETUNE)):
        page.append(
            f"\n## {title}\n\n| recipe | what it is | image size | batch | length | learning rate | averaged weights |"
        )
        page.append("|---|---|---|---|---|---|---|")
        for name, recipe in table.items():
            run = recipe.config
            length = f"{run.schedule.steps} steps" if run.schedule.steps else f"{run.schedule.epochs:g} epochs"
            numbers = (
                f"{run.model.image_size} | {run.train.global_batch} | {length} | {run.optim.kind} {run.optim.lr:g} | "
                f"{f'{run.train.average:g}' if run.train.average else 'no'}"
            )
            page.append(f"| `{name}` | {_cell(recipe.summary)} | {numbers} |")
    return "\n".join(page) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/config.md": config_fields,
    "reference/recipes.md": recipes,
}


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages to the site (mkdocs calls this)."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, name, content=page()))
    return files


def _groups(kind: type) -> Iterator[tuple[str, str, type]]:
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            yield field.name.capitalize(), f"{field.name}.", type(field.default)


def _field_docstrings(kind: type) -> Iterator[tuple[str, str]]:
    """The string below each field of a dataclass, which Python itself doesn't keep."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, " ".join(str(text.value.value).split())


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if isinstance(hint, type) and not typing.get_args(hint):
        return {Path: "path", str: "text", bool: "`True`, `False`", float: "number", int: "integer"}[hint]
    if typing.get_origin(hint) is tuple:
        return "several of: " + _type_name(typing.get_args(hint)[0])
    return " or ".join(_type_name(each) for each in typing.get_args(hint) if each is not type(None))


def _cell(text: str) -> str:
    """``text`` for a cell of a Markdown table, with commands by their short names."""
    return re.sub(r"\b(?:jobs|data_prep)\.([a-z]+)", r"`vit \1`", text).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(PAGES[sys.argv[1]](), end="")
