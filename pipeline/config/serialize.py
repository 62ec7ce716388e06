"""A configuration as JSON values and back."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pipeline.config.facts import FACTS, check_range
from pipeline.core.errors import UserError

Config = TypeVar("Config")

_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of plain JSON values; paths become strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[no-any-return]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` as ``{"optim.lr": 1}``, the names the command line uses."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def from_dict(kind: type[Config], tree: Any, prefix: str = "") -> Config:
    """The dataclass ``kind`` from the values of a JSON file, with the defaults of fields that are missing.

    Raises UserError for a field that ``kind`` doesn't have, one that is missing and has no default, and a value of
    another type or out of its range.
    """
    values = _values(kind, tree, prefix, lambda key, hint, section: from_dict(hint, section, f"{prefix}{key}."))
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and field.name not in values:
            raise UserError(f"field {prefix + field.name!r} is missing")
    return kind(**values)


def from_file(
    kind: type[Config], tree: Any, path: Path, remedy: str = "put back a copy of it", prefix: str = ""
) -> Config:
    """As :func:`from_dict`, for what the JSON file ``path`` holds: the error names it."""
    try:
        return from_dict(kind, tree, prefix)
    except UserError as error:
        raise UserError(f"{str(path)!r} is damaged, or of another version ({error}): {remedy}") from error


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """``config`` with other values, by dotted name: ``{"optim.lr": 0.01}``. Raises UserError as :func:`update` does."""
    return update(config, nest(values))


def nest(values: Mapping[Any, Any]) -> dict[str, Any]:
    """``{"optim.lr": 1}`` as ``{"optim": {"lr": 1}}``, the reverse of :func:`flatten`; nested values stay nested.

    Raises UserError for a name that is both a field and a section.
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, field = str(name).split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"configuration field {section!r} is given as a field and as a section")
        if isinstance(value, Mapping):
            place.setdefault(field, {})
            place[field] = {**place[field], **nest(value)} if isinstance(place[field], dict) else nest(value)
        else:
            place[field] = value
    return tree


def update(config: Config, tree: Mapping[str, Any], prefix: str = "") -> Config:
    """``config`` with the values of a nested dict; other fields keep theirs.

    Raises UserError for a field that it doesn't have, with the nearest name, and for a value of another type or out of
    its range.
    """

    def section(key: str, _: Any, tree: Any) -> Any:
        return update(getattr(config, key), tree, f"{prefix}{key}.")

    return dataclasses.replace(config, **_values(type(config), tree, prefix, section))  # type: ignore[type-var]


def _values(kind: type, tree: Any, prefix: str, section: Callable[[str, Any, Any], Any]) -> dict[str, Any]:
    """The fields of the dataclass ``kind`` that ``tree`` names, checked; ``section`` reads a field that is one too."""
    if not isinstance(tree, Mapping):
        where = f"field {prefix.rstrip('.')!r}" if prefix else "the configuration"
        raise UserError(f"{where} is {tree!r}: give a section of fields")
    hints, values = get_type_hints(kind), {}
    limits = {field.name: field.metadata[FACTS].limits for field in dataclasses.fields(kind) if FACTS in field.metadata}
    for key, value in tree.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            remedy = f"did you mean {prefix}{near[0]}?" if near else "remove it"
            raise UserError(f"configuration field {prefix + str(key)!r} is unknown: {remedy}")
        if dataclasses.is_dataclass(hints[key]):
            values[key] = section(key, hints[key], value)
        else:
            values[key] = typed(hints[key], value, prefix + key)
            check_range(prefix + key, values[key], limits.get(key))
    return values


def typed(hint: Any, value: Any, name: str) -> Any:
    """``value`` of JSON or YAML as the type ``hint``. Raises UserError with the field's ``name`` if it is none."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):  # an item of a list
        return from_dict(hint, value, f"{name}.")  # type: ignore[arg-type]
    wanted = get_args(hint)
    if get_origin(hint) is Literal:
        if value in wanted and type(value) in {type(one) for one in wanted}:
            return value
        raise UserError(f"{name} is {value!r}: give one of {', '.join(map(str, wanted))}")
    if get_origin(hint) is tuple:
        variable = wanted[-1] is Ellipsis
        if not isinstance(value, list | tuple) or (not variable and len(value) != len(wanted)):
            raise UserError(f"{name} is {value!r}: give a list{'' if variable else f' of {len(wanted)}'}")
        return tuple(typed(wanted[0], item, name) for item in value)
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is {value!r}: give a section of fields")
        return {typed(wanted[0], key, name): typed(wanted[1], item, f"{name} {key!r}") for key, item in value.items()}
    if isinstance(hint, UnionType):  # X | None
        return None if value is None else typed(wanted[0], value, name)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and (type(value) is int or isinstance(value, str)):  # YAML reads 1e-3 as a string
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if type(value) is not hint:
        raise UserError(f"{name} is {value!r}: give {_NAMES[hint]}")
    return value
