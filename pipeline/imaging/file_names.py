"""Which files are images, by the endings of their names."""

import collections
from collections.abc import Iterable

# what datasets hold: JPEGs, and what data_prep encodes as JPEG
DATASET_ENDINGS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp"})
READABLE_ENDINGS = DATASET_ENDINGS | {"tif", "tiff"}  # what a prediction reads
ENDINGS_SHOWN = 4  # in a message


def ending(name: str) -> str:
    """The part after the last dot, in lower case; all of a name without dots."""
    return name.rpartition(".")[2].lower()


def counted_endings(names: Iterable[str]) -> str:
    """How many of the files have which ending, commonest first, for a message: ``12 .heic, 3 .mov``.

    Names without an ending don't count.
    """
    bases = [name.rpartition("/")[2] for name in names]
    counts = collections.Counter(ending(base) for base in bases if "." in base)
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = [f"{count:,} .{name}" for name, count in order[:ENDINGS_SHOWN]]
    if rest := sum(count for _, count in order[ENDINGS_SHOWN:]):
        listed.append(f"{rest:,} with other endings")
    return ", ".join(listed)
