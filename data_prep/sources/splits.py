"""Splits (train, val, test) in the names of folders, tars and tar members, which must not become classes.

A name alone proves little: a class may be called "train" or "test_tube". Two splits whose names agree in everything
but the split's word do: ``train`` and ``val``, ``imagenet21k_train`` and ``imagenet21k_val``, ``train2017`` and
``test2017``.
"""

import collections
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.sources.folders import subfolders
from data_prep.sources.names import class_in_name, is_image, is_system
from pipeline.core.errors import UserError, printable

_WORDS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "valset", "validset", "validationset", "dev", "devel", "devset", "eval",
            "evaluation", "holdout", "heldout"),
    "test": ("test", "testing", "testset", "testingset"),
}  # fmt: skip
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_WORD = re.compile("(?<![a-z])(" + "|".join(sorted(_SPLIT_OF, key=len, reverse=True)) + ")(?![a-z])", re.IGNORECASE)
DEPTH = 4  # levels of folders looked through for splits: Kaggle's lie in ILSVRC/Data/CLS-LOC
WIDTH = 20  # folders looked into at each level
IMAGENET_VAL = "ILSVRC2012_val_"


class Split(NamedTuple):
    """A folder or tar that holds one split."""

    name: str
    split: str  # the plain word for --split


def split_of(name: str) -> str:
    """The split of a WebDataset tar: ``imagenet1k-validation-03.tar`` -> ``val``; ``train`` if the name has none."""
    words = {_SPLIT_OF.get(word, "") for word in re.split("[^a-z]+", name.lower())}
    return "val" if "val" in words else "test" if "test" in words else "train"


def has_word(name: str) -> bool:
    """Whether a split's word is in a name."""
    return _WORD.search(name) is not None


def among(names: Iterable[str]) -> list[Split]:
    """Those of ``names`` (of one folder's folders, or of tars) that are splits: two or more of a kind, in order."""
    names = sorted(names)
    groups: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)  # what surrounds the word -> names
    for name in names:
        if match := _WORD.search(name):
            before, after = name[: match.start()].lower(), name[match.end() :].lower()
            around = re.sub(r"\d", "", before), re.sub(r"\d", "", after).rstrip("_-. ")  # val_images, train_images_0
            groups[around][name] = _SPLIT_OF[match[1].lower()]
    found: dict[str, str] = {}
    for (before, _), group in groups.items():
        if len(set(group.values())) < 2:
            continue
        found |= group
        for name in names if len(before) > 1 else ():  # imagenet21k_small_classes beside imagenet21k_train
            rest = re.sub(r"\d", "", name.lower())
            if rest.startswith(before) and name not in found:
                found[name] = re.sub(r"\W", "_", rest.removeprefix(before)) or "other"
    return [Split(name, found[name]) for name in names if name in found]


def is_split(name: str) -> bool:
    """Whether a name is a split's word and nothing else, such as ``Train``."""
    return name.lower() in _SPLIT_OF


def in_folder(folder: Path) -> list[Split]:
    """The split folders in ``folder`` or a few levels below; names are paths. Empty if it holds class folders."""
    level = [folder]
    for _ in range(DEPTH):
        found: list[Split] = []
        below: list[Path] = []
        for place in level:
            names = _subfolders(place)
            here = among(names)
            if not here and len(level) == 1:
                here = _alone(place, names)
            found += [Split(str(place / name), split) for name, split in here]
            below += [place / name for name in names[:WIDTH]]
        if found:
            return found
        level = below[:WIDTH]
    return []


def _alone(place: Path, names: Sequence[str]) -> list[Split]:
    """The only split of a folder: there is nothing else in it, or nothing else with images or folders."""
    found = [name for name in names if is_split(name)]
    if len(found) != 1 or not (len(names) == 1 or _subfolders(place / found[0])):
        return []
    others = [place / name for name in names[:WIDTH] if name not in found]
    if any(_holds_images(other) or _subfolders(other) for other in others):
        return []
    return [Split(found[0], _SPLIT_OF[found[0].lower()])]


def _subfolders(folder: Path) -> list[str]:
    try:
        return subfolders(folder)
    except OSError:  # the scan says what is wrong with it
        return []


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(is_image(entry.name) for entry in entries)
    except OSError:
        return False


def in_paths(folders: Iterable[str]) -> list[Split]:
    """The split folders among the paths ("/" between parts) of the folders of a tar's members."""
    children: dict[str, set[str]] = collections.defaultdict(set)
    for folder in folders:
        parts = [part for part in folder.split("/") if part not in ("", ".")]
        for depth, part in enumerate(parts):
            children["/".join(parts[:depth])].add(part)
    return [
        Split(f"{parent}/{name}".lstrip("/"), split)
        for parent, names in sorted(children.items())
        for name, split in among(name for name in names if not is_system(name))
    ]


def error_in_folder(given: str, found: Sequence[Split]) -> UserError:
    """One line that names the splits of a folder and the command for each."""
    if len({str(Path(name).parent) for name, _ in found}) > 1:
        shown = ", ".join(printable(repr(os.path.relpath(name, given))) for name, _ in found[:4])
        return UserError(
            f"INPUT {given!r} holds splits inside several of its folders ({shown}{', ...' if len(found) > 4 else ''}): "
            "for each split give a folder that holds one folder per class, with --split train, val or test"
        )
    commands = [f"vit shard {shlex.quote(name)} {_options(Path(name), split)}" for name, split in found]
    return _error(given, found, "shard one after another: " + "; ".join(commands))


def error_in_tar(given: str, found: Sequence[Split]) -> UserError:
    """One line that names the splits inside a tar and how to get a dataset of each."""
    commands = [f"vit shard FOLDER/{shlex.quote(name)} OUTPUT-{split} --split {split}" for name, split in found]
    return _error(
        given, found, f"unpack it (tar -xf {shlex.quote(given)} -C FOLDER), and shard one after another: "
        + "; ".join(commands)
    )  # fmt: skip


def error_of_tars(given: str, found: Sequence[Split]) -> UserError:
    """One line that names the tars of splits and the command for each."""
    commands = [
        f"vit shard {shlex.quote(name)} OUTPUT-{split} --split {split}"
        + (" --devkit ILSVRC2012_devkit_t12.tar.gz" if Path(name).name.startswith("ILSVRC2012_img_val") else "")
        for name, split in found
    ]
    return _error(given, found, "shard one after another: " + "; ".join(commands))


def _error(given: str, found: Sequence[Split], remedy: str) -> UserError:
    names = ", ".join(Path(name).name for name, _ in found)
    what = "splits" if len(found) > 1 else "split"
    return UserError(printable(f"INPUT {given!r} holds the {what} {names}, not classes: {remedy}"))


def _options(folder: Path, split: str) -> str:
    if _subfolders(folder):
        return f"OUTPUT-{split} --split {split}"
    with os.scandir(folder) as entries:
        first = next((entry.name for entry in entries if not is_system(entry.name)), "")
    if class_in_name(first):
        return f"OUTPUT-{split} --split {split}"
    if first.startswith(IMAGENET_VAL):
        return f"OUTPUT-{split} --split {split} --devkit ILSVRC2012_devkit_t12.tar.gz"
    return f"OUTPUT-{split} --split {split} (it has no class folders yet)"
