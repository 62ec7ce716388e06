"""Which classes a dataset has, in which order, and what they are called."""

import collections
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from pipeline.core.errors import UserError

NAMED = ("derive", "numbers", "fall11", "winter21", "google21k", "21k-p", "imagenet12k", "imagenet1k")
WINTER21_CLASSES = 19_167
MIN_IMAGES_21K_P = 501  # "more than 500 images": Ridnik et al., "ImageNet-21K Pretraining for the Masses", section 3.1
_WNID = re.compile(r"(n\d{8})\s.*")  # and what follows it
_LETTERS = {"fall11": "f", "google21k": "g", "imagenet12k": "t", "imagenet1k": "k"}  # in classes.tsv


@cache
def _known() -> dict[str, tuple[str, str]]:
    """wnid -> (letters of the lists it is in, name), in the order of wnids, which is that of every list."""
    lines = resources.files("pipeline.dataset").joinpath("classes.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {wnid: (letters, name) for wnid, letters, name in rows}


def name_of(wnid: str) -> str:
    """The class's name in WordNet; the wnid itself if it is not one of ImageNet's."""
    return _known().get(wnid, ("", wnid))[1]


def listed(choice: str) -> list[str] | None:
    """The wnids of ``--classes`` in index order; ``None`` if they depend on INPUT."""
    if choice in _LETTERS:
        return [wnid for wnid, (letters, _) in _known().items() if _LETTERS[choice] in letters]
    return None if choice in NAMED else read_list(Path(choice))


def derived(choice: str, counts: dict[str, int]) -> list[str]:
    """The wnids of the choices that depend on INPUT, from its image counts by class. Raises UserError."""
    if choice == "21k-p":
        chosen = sorted(wnid for wnid, count in counts.items() if count >= MIN_IMAGES_21K_P)
        if not chosen:
            raise UserError(
                "--classes 21k-p keeps classes of more than 500 images, and INPUT has none: --classes derive takes all"
            )
        return chosen
    if choice == "winter21" and len(counts) != WINTER21_CLASSES:
        raise UserError(
            f"--classes winter21 has {WINTER21_CLASSES:,} classes, but INPUT contains images of {len(counts):,}: "
            "is it complete? --classes derive takes the classes that are there"
        )
    return sorted(counts)


def meaning(asked: Sequence[str] | None, named: Mapping[int, str]) -> Sequence[str] | None:
    """The classes, by number, that class numbers mean; None if nothing tells more than the numbers.

    ``asked`` is the list that the user gave, ``named`` the wnid by which the images of a number are called (empty if
    they aren't). The names decide unless the list has none of these wnids. Raises UserError: see :func:`recognized`.
    """
    if not named or (asked is not None and not set(named.values()) & set(asked)):
        return asked
    if asked is not None and _fits(asked, named):
        return asked
    return recognized(named)


def _fits(wnids: Sequence[str], named: Mapping[int, str]) -> bool:
    return all(number < len(wnids) and wnids[number] == wnid for number, wnid in named.items())


def recognized(named: Mapping[int, str]) -> list[str]:
    """The wnids in index order of tars whose class number ``number`` comes with images called ``named[number]``.

    One of the lists that ``--classes`` knows, if exactly one has all the numbers at these wnids; otherwise the wnids by
    number, if none is missing (as in winter21's 19,167 classes, of which each has images). Raises UserError if the
    order is unknown: a wrong one would train without any other sign.
    """
    fitting = []
    for choice in _LETTERS:
        wnids = listed(choice) or []
        if _fits(wnids, named):
            fitting.append((choice, wnids))
    if len(fitting) == 1:
        return fitting[0][1]
    if fitting:
        raise UserError(
            f"the class numbers fit the orders {' and '.join(choice for choice, _ in fitting)}: give one of them with "
            "--classes"
        )
    if sorted(named) == list(range(len(named))) and len(set(named.values())) == len(named):
        return [named[number] for number in range(len(named))]
    number, wnid = next(iter(sorted(named.items())))
    raise UserError(
        f"the class numbers (such as {number} for {wnid}) are in none of the orders {', '.join(_LETTERS)}, and some "
        "numbers have no images to tell their wnids: give the wnids in their order with --classes FILE, or keep the "
        "numbers as classes with --classes numbers"
    )


def read_list(path: Path) -> list[str]:
    """Read a file with one class per line; text after a tab or a wnid is ignored. Raises UserError."""
    if not path.is_file():
        raise UserError(f"--classes {str(path)!r} must be {', '.join(NAMED)}, or a file with one wnid per line")
    try:
        # NFC, as data_prep stores classes: an editor on a Mac may have written NFD
        lines = unicodedata.normalize("NFC", path.read_text("utf-8-sig")).splitlines()
        wnids = [_WNID.sub(r"\1", line.split("\t")[0].strip()) for line in lines if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"--classes {str(path)!r} is not a UTF-8 text file: give one wnid per line") from None
    repeated = [wnid for wnid, count in collections.Counter(wnids).items() if count > 1]
    if repeated or not wnids:
        raise UserError(f"--classes {str(path)!r} " + (f"lists {repeated[0]!r} twice" if repeated else "is empty"))
    return wnids
