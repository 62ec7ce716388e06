"""Find the downloads of test sets below a folder."""

from pathlib import Path

from data_prep.test_sets.catalogue import DEVKIT, REAL, SETS, TestSet
from pipeline.core.errors import UserError


def find(root: Path) -> dict[str, list[Path]]:
    """By a set's name, its downloads in ``root`` or in a folder of it. ImageNet-C comes in several tars.

    A folder counts before a tar of the same set, and a prepared dataset under one of the names counts too.
    """
    if not root.is_dir():
        raise UserError(f"--data-root {str(root)!r} is not a folder: name the one that holds the downloads")
    places = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    found = {test_set.name: first for test_set in SETS if (first := _downloads(test_set, places))}
    if "val" in found and first_of(places, REAL):
        found["real"] = found["val"]
    return found


def _downloads(test_set: TestSet, places: list[Path]) -> list[Path]:
    for pattern in test_set.downloads:
        for place in places:
            if matches := sorted(place.glob(pattern)):
                first = matches[0]
                if test_set.name == "c" and first.is_dir():  # as downloaded, or unpacked
                    tars = sorted(path for path in first.iterdir() if path.suffix == ".tar" and path.stem != "extra")
                    return tars or [first]
                return [first]
    return []


def beside(download: Path, pattern: str) -> Path | None:
    """The first match of ``pattern`` beside a download, or beside its folder."""
    return first_of([download.parent, *download.parent.glob("*/"), download.parent.parent], pattern)


def first_of(places: list[Path], pattern: str) -> Path | None:
    return next((match for place in places for match in sorted(place.glob(pattern))), None)


def devkit_of(download: Path) -> Path | None:
    """ILSVRC2012's development kit, which names the classes of the validation tar."""
    return beside(download, DEVKIT)


def real_of(download: Path) -> Path | None:
    return beside(download, REAL)
