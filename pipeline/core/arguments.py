"""Normalising what users type before parsing: switches, outputs, and names that are nearly right."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any

from pipeline.core.errors import UserError

OUTPUTS = frozenset({"json", "csv"})  # text fields with these names take a file, or - for the standard output
# timm's, transformers' and the paper's names of our sizes: vit_large_patch16_224, google/vit-large-patch16, ViT-L/16
_VIT = re.compile(r"(?:vit|deit3?)[-_ ]*(base|large|b|l)[-_/ ]*(?:patch)?(16|32)", re.I)


def nearest(word: str, known: Collection[str]) -> str:
    """The known name that the user probably meant, or ""."""
    if (found := _VIT.search(word)) and (size := f"{found[1][0].lower()}{found[2]}") in known:
        deit = f"{size}_deit3"
        return deit if "deit" in word.lower() and deit in known else size
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(option, type) of each field of a dataclass, nested dataclasses included: ("data.min-area", float)."""
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, name = hints[field.name], field.name.replace("_", "-")
        if typing.get_origin(kind) is Annotated:
            kind, *more = typing.get_args(kind)
            if any(getattr(each, "name", None) == "" for each in more):  # tyro.conf.arg(name=""): no prefix
                name = ""
        if dataclasses.is_dataclass(kind):
            yield from fields_of(kind, f"{prefix}{name}." if name else prefix)
        else:
            yield f"{prefix}{name}", kind


def normalised(args: Sequence[str], config: Any, *, flags: bool) -> list[str]:
    """``args`` with switches and outputs in one spelling.

    Users may write a switch as --x, --no-x or --x True|False. The parser takes it without a value if ``flags``, else
    with True or False. --json and --csv without a value mean the standard output.
    """
    kinds = dict(fields_of(config))
    switches = {name for name, kind in kinds.items() if kind is bool}
    words, rest = [], list(args)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("_", "-")
        if not word.startswith("--"):
            words.append(word)
        elif name in OUTPUTS and kinds.get(name) is str and not equals and (not rest or rest[0].startswith("--")):
            words += [word, "-"]
        elif (on := name in switches) or without_no(name) in switches:
            if not equals and rest and rest[0].lower() in ("true", "false"):
                value = rest.pop(0)
            if value.lower() not in ("", "true", "false"):  # the parser reports the error
                words.append(word)
                continue
            path, state = (name if on else without_no(name)), on == (value.lower() != "false")
            above, _, last = path.rpartition(".")
            negated = f"--{above}.no-{last}" if above else f"--no-{last}"
            words += [f"--{path}" if state else negated] if flags else [f"--{path}", str(state)]
        else:
            words.append(word)
    return words


def check_least(options: Any, **least: int) -> None:
    """Raises UserError for the first option of ``options`` that is below its least value."""
    for name, bound in least.items():
        if (value := getattr(options, name)) < bound:
            raise UserError(f"--{name.replace('_', '-')} {value} is too small: give at least {bound}")


def given_names(words: Sequence[str]) -> set[str]:
    """Fields that a command line names: ``--optim.layer-decay 0.7`` and ``--optim.layer_decay=0.7`` alike."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def without_no(name: str) -> str:
    """``data.flip`` for ``no-data.flip`` and for ``data.no-flip``; "" for other names."""
    if name.startswith("no-"):
        return name.removeprefix("no-")
    above, _, last = name.rpartition(".")
    return f"{above}.{last.removeprefix('no-')}" if last.startswith("no-") else ""
