"""The classes of published heads, which their files leave out."""

from pipeline.dataset.class_lists import listed, name_of
from pipeline.interop.trained_model import Named

_LISTS = {1000: "imagenet1k", 21843: "google21k", 21841: "fall11"}


def names_of_published(classes: tuple[Named, ...]) -> tuple[Named, ...]:
    """Names for classes that have none, where their number is that of a published head."""
    choice = _LISTS.get(len(classes))
    if choice is None or any(entry.wnid for entry in classes):
        return classes
    return tuple(Named(wnid, name_of(wnid)) for wnid in listed(choice) or ())
