"""Reading what other projects' files state about a model's inputs and classes. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import UserError

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)  # timm's IMAGENET_DEFAULT_MEAN, also of torchvision and DeiT
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_IMAGENET = re.compile(r"imagenet[-_ ]?(1k|2012)|in1k", re.IGNORECASE)

LARGEST = 1e3  # limit of mean and deviation for pixels from 0 to 1: beyond it float32 has too few digits


def triple(value: Any, name: str, source: str) -> Triple:
    """Mean or standard deviation per channel, from three numbers or one for all channels. Raises UserError."""
    values = [value] * 3 if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if (
        not isinstance(values, Sequence)
        or len(values) != 3
        or not all(isinstance(one, (int, float)) and math.isfinite(one) and abs(one) <= LARGEST for one in values)
        or ("std" in name and not all(one >= 1 / LARGEST for one in values))
    ):
        raise UserError(
            f"{source!r} has {name} {value!r}: it must be three numbers "
            f"up to {LARGEST:.0f}, a deviation at least {1 / LARGEST}"
        )
    red, green, blue = map(float, values)
    return red, green, blue


def side(value: Any, name: str, source: str) -> int:
    """Side of a square in pixels, from a number, [height, width] or [channels, height, width]. Raises UserError."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) == 3:
        if values[0] != 3:
            raise UserError(f"{source!r} has {name} {value!r}, which has not three channels: choose an RGB model")
        values = values[1:]
    if not 1 <= len(values) <= 2 or not all(type(one) is int and one > 0 for one in values):
        raise UserError(f"{source!r} has {name} {value!r}, which is not a size in pixels: correct it")
    if values[0] != values[-1]:
        raise UserError(f"{source!r} has {name} {value!r}: only square images are supported; choose a square model")
    return int(values[0])


def check_size(stated: int, image_size: int, name: str, source: str) -> None:
    """Raise UserError if the stated size is not that of the position embedding."""
    if stated != image_size:
        raise UserError(
            f"{source!r} has {name} {stated}, but its position embedding is for {image_size} x {image_size} pixels: "
            "correct the file, or choose another model"
        )


def labels_of(names: Any, classes: int, field: str, source: str) -> list[str] | None:
    """Class names in index order, from a list or a mapping by index; None if there are none. Raises UserError."""
    if not names:
        return None
    if isinstance(names, Mapping):
        by_index = {str(index): name for index, name in names.items()}
        if by_index.keys() != {str(index) for index in range(classes)}:
            raise UserError(
                f"{source!r} has {field} for {len(names)} classes, but the head has {classes}, "
                f"from 0 to {classes - 1}: correct or remove {field}"
            )
        names = [by_index[str(index)] for index in range(classes)]
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        raise UserError(f"{source!r} has {field} that are not names: correct or remove {field}")
    if len(names) != classes:
        raise UserError(
            f"{source!r} has {len(names)} {field}, but the head has {classes} classes: correct or remove {field}"
        )
    return [str(name) for name in names]


def says_imagenet(*words: object) -> bool:
    """Whether names of files and fields say that the classes are ImageNet-1K's."""
    return any(isinstance(word, str) and _IMAGENET.search(word) for word in words)


def refuse_unknown(fields: Mapping[str, Any], defaults: Mapping[str, Sequence[Any]], what: str, source: str) -> None:
    """Raise UserError if a field's value isn't among its ``defaults`` (a field without an entry is always refused)."""
    for name, value in fields.items():
        known = defaults.get(name)
        if known is None and value in (None, False):
            continue  # switched off
        if known is None or value not in known:
            shown = name if name.isidentifier() else repr(name)
            raise UserError(
                f"{source!r} has {what} {shown} {value!r}, which is not supported: choose a ViT as published"
            )
