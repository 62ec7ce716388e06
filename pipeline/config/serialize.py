"""A configuration as JSON values and back."""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pipeline.core.errors import UserError

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of plain JSON values; paths become strings."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))  # type: ignore[no-any-return]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` as ``{"optim.lr": 1}``, the names the command line uses."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def from_dict(kind: type[Config], tree: dict[str, Any]) -> Config:
    """The dataclass ``kind`` from what :func:`to_dict` made. Raises UserError for a field it doesn't have."""
    hints = get_type_hints(kind)
    unknown = set(tree) - set(hints)
    if unknown:
        raise UserError(f"configuration field {sorted(unknown)[0]!r} is not known to this version: remove it")
    return kind(**{name: _field_value(hints[name], value) for name, value in tree.items()})


def _field_value(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)  # type: ignore[arg-type]
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    if isinstance(value, list):  # JSON knows no tuples
        return tuple(value)
    return value
