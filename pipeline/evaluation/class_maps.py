"""Checking that a dataset's labels and a model's outputs have the same classes."""

import logging
from collections.abc import Mapping, Sequence

from pipeline.core.errors import UserError
from pipeline.core.log import ONCE
from pipeline.dataset.class_lists import listed
from pipeline.interop.trained_model import Named

logger = logging.getLogger(__name__)


def check_classes(model: object, classes: Sequence[Named], source: str, data: Sequence[Mapping[str, str]]) -> None:
    """Raise UserError if the dataset's classes (wnid, name) differ from the model's, or are in another order.

    ``model`` and ``source``: MODEL and --data as given, for the message. Warns if the model does not name its classes.
    """
    wnids, names = [entry["wnid"] for entry in data], [entry["name"] for entry in data]
    if len(classes) == len(data) and not any(entry.wnid for entry in classes):
        logger.warning("MODEL %r does not name its classes: assuming those of --data, in order", str(model), extra=ONCE)
        return
    if [entry.wnid for entry in classes] in (wnids, names):  # transformers' folders have only names
        return
    first = next((row for row, entry in enumerate(classes[: len(data)]) if entry.wnid != wnids[row]), len(data))
    difference = f", class {first} is {wnids[first]!r}, not {classes[first].wnid!r}" if first < len(data) else ""
    raise UserError(
        f"--data {source!r} has another class map ({len(data)} classes{difference}) than MODEL {str(model)!r} "
        f"({len(classes)} classes): shard it with --classes of the training dataset"
    )


def check_real(source: str, wnids: Sequence[str]) -> None:
    """Raise UserError if the class numbers aren't those of real.json's labels."""
    if list(wnids) != listed("imagenet1k"):
        raise UserError(
            f"--real gives labels of ImageNet-2012's 1,000 classes, but --data {source!r} has {len(wnids)}, or another "
            "order: shard it with --classes imagenet1k"
        )
