"""Which classes the numbers in WebDataset tars mean, by the names of the images that come with them.

ImageNet's images are called by their class (n01440764_10026), so names and numbers together tell the order of the
classes. A wrong order trains without any other sign.
"""

import collections
import re
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import UserError
from pipeline.dataset import class_lists

_WNID = r"(?:^|/)(?P<wnid>n\d{8})_[^/]*$"
_named = re.compile(_WNID)
AGREEING = 0.9  # least share of such images whose wnid is the commonest of their class number: the others are mistakes


class NamedNumbers:
    """How often each class number comes with an image that is called by a wnid."""

    def __init__(self) -> None:
        self._images: collections.Counter[tuple[str, str]] = collections.Counter()  # by label and wnid

    def add(self, labels: pa.ChunkedArray, names: pa.ChunkedArray) -> None:
        """Count images by their label, as text, and their key or file name."""
        wnids = pc.struct_field(pc.extract_regex(names, _WNID), "wnid")
        pairs = pa.table({"label": labels, "wnid": wnids}).filter(pc.is_valid(wnids))
        for row in pairs.group_by(["label", "wnid"]).aggregate([([], "count_all")]).to_pylist():
            self._images[row["label"], row["wnid"]] += row["count_all"]

    def wnids(self) -> dict[int, str]:
        """The commonest wnid of each number.

        Empty if images aren't called by wnids, if labels aren't numbers, and if the names contradict the numbers, as
        for groups of ImageNet's classes.
        """
        if not all(label.isdecimal() for label, _ in self._images):
            return {}
        named: dict[int, str] = {}
        agreeing = 0
        for (label, wnid), count in self._images.most_common():
            if named.setdefault(int(label), wnid) == wnid:
                agreeing += count
        return named if agreeing >= AGREEING * self._images.total() else {}


def order_of(
    labels: Collection[str], seen: NamedNumbers, asked: Sequence[str] | None
) -> tuple[Sequence[str] | None, dict[str, str]]:
    """What class numbers mean: the classes in order (None: nothing tells), and the class of each number in ``labels``.

    ``labels``: those of all images. ``asked``: the list of --classes; if one of its names is a number, this label is a
    name. Raises UserError if the order is unknown, and for a number beyond its end.
    """
    names = set() if asked is None or all(name.isdecimal() for name in asked) else set(asked)
    numbers = [label for label in labels if label.isdecimal() and label not in names]
    order = class_lists.meaning(asked, seen.wnids() if len(numbers) == len(labels) else {})
    if order is None or not numbers:
        return order, {}
    largest = max(int(label) for label in numbers)
    if largest >= len(order):
        raise UserError(
            f"a sample has class number {largest}, but the list has {len(order):,} classes: name the list that the "
            "tars were made with by --classes"
        )
    return order, {label: order[int(label)] for label in numbers}


def wnid_in(name: str) -> str:
    """The wnid by which an image is called; "" for other names."""
    found = _named.search(name)
    return found["wnid"] if found else ""
