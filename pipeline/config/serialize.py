"""A configuration as JSON values and back."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

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


def from_dict(kind: type[Config], tree: Mapping[str, Any]) -> Config:
    """The dataclass ``kind`` from the output of :func:`to_dict`; missing fields have their defaults.

    Raises UserError for a field that ``kind`` doesn't have, or a value of another type.
    """
    return update(kind(), tree)


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

    Raises UserError for a field that it doesn't have, with the nearest name, or a value of another type.
    """
    hints, changes = get_type_hints(type(config)), {}
    for key, value in tree.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            remedy = f"did you mean {prefix}{near[0]}?" if near else "remove it"
            raise UserError(f"configuration field {prefix + str(key)!r} is unknown: {remedy}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"configuration field {prefix + key!r} is {value!r}: give a section of fields")
            changes[key] = update(getattr(config, key), value, f"{prefix}{key}.")
        else:
            changes[key] = _typed(hints[key], value, prefix + key)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Convert ``value`` from JSON or YAML to the field's type."""
    wanted = get_args(hint)
    if get_origin(hint) is Literal:
        if value in wanted and type(value) in {type(one) for one in wanted}:
            return value
        raise UserError(f"{name} is {value!r}: give one of {', '.join(map(str, wanted))}")
    if get_origin(hint) is tuple:
        variable = wanted[-1] is Ellipsis
        if not isinstance(value, list | tuple) or (not variable and len(value) != len(wanted)):
            raise UserError(f"{name} is {value!r}: give a list{'' if variable else f' of {len(wanted)}'}")
        return tuple(_typed(wanted[0], item, name) for item in value)
    if isinstance(hint, UnionType):  # X | None
        return None if value is None else _typed(wanted[0], value, name)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not hint:
        raise UserError(f"{name} is {value!r}: give {_NAMES[hint]}")
    return value
