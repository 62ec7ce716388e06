"""What the parser says of a wrong command line, in one line: the option, the value and the remedy."""

import re
from collections.abc import Collection, Sequence

from pipeline.core.arguments import nearest, without_no
from pipeline.core.errors import UserError

_NUMBER = re.compile(
    r"Error parsing (?P<name>\S+): (?P<kind>could not|invalid literal) .*?: (?P<value>'.*?') Argument "
)
_CHOICE = re.compile(r"invalid choice (?P<value>.*) for argument '(?P<name>\S+)'\. Expected one of \((?P<known>.*)\)\.")
_MISSING = re.compile(r"Missing value for argument '(?P<name>\S+)'")
_SUGGESTION = re.compile(r" *(--[a-z0-9.-]+)")
_IN_FULL = 3  # options whose help is shown beside a name that is nearly right; of more, only the names


def one_line(framed: str, words: Sequence[str], options: Collection[str]) -> str:
    """tyro's framed message about the arguments ``words`` as one line. ``options``: the names of all fields."""
    text = _unframed(framed)
    if found := _NUMBER.search(text):
        return f"{found['name']} {found['value']} is not a {'whole ' * (found['kind'] != 'could not')}number"
    if found := _CHOICE.search(text):
        return f"{found['name']} {found['value']} is unknown: name one of {found['known'].replace(chr(39), '')}"
    if found := _MISSING.search(text):
        name = found["name"]
        if name.startswith("-"):
            return f"{name} has no value: give one"
        for typed in (word.partition("=")[0] for word in words if word.startswith("--")):
            if typed == f"--{name}":
                return f"{name.upper()} is missing: give it without {typed}"
            if not _is_known(typed, options):  # tyro takes it and what follows for a value
                near = nearest(typed[2:], options)
                return f"Unrecognized option: {typed}" + f" Perhaps you meant: --{near}" * bool(near)
        return f"{name.upper()} is missing"
    return text


def check_groups(words: Sequence[str], options: Collection[str]) -> None:
    """Raises UserError if an argument names a group of options: ``--data`` where there is ``--data.train``."""
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        members = [f"--{option}" for option in options if option.startswith(f"{name}.")]
        if word.startswith("--") and members and name not in options:
            raise UserError(f"--{name} is a group of options: name one of them: {', '.join(members)}")


def _is_known(typed: str, options: Collection[str]) -> bool:
    """Whether there is an option ``--NAME``, in whatever spelling a switch has."""
    name = typed.removeprefix("--").replace("_", "-")
    return name in {"help", *options} or without_no(name) in options


def _unframed(framed: str) -> str:
    """The text in one line: ``Title: what is wrong. Perhaps you meant: --optim.lr FLOAT ...``"""
    lines = [line.strip("╭╮╰╯│─\n").rstrip() for line in framed.splitlines()]
    lines = [line for line in lines if line.strip("─- ") and not line.strip().startswith("For full helptext")]
    lines = [line for line in lines if not line.endswith(" --help")]  # points to the option's help
    names = {place: found[1] for place, line in enumerate(lines) if (found := _SUGGESTION.match(line))}
    if len(names) > _IN_FULL:
        lines[min(names) :] = [", ".join(names.values())]
    if len(lines) > 1:
        title = lines.pop(0).strip()
        lines[0] = lines[0] if lines[0].strip().startswith(title) else f"{title}: {lines[0]}"
    return re.sub(r"\s+", " ", " ".join(lines)).strip()
