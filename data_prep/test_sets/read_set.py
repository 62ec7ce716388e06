"""A download -> its images with their classes, in ImageNet's wnids. Raises UserError for a partial or wrong one."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.dataset_reader import pieces, rows_of
from data_prep.sources.devkit import Devkit, read_devkit
from data_prep.sources.names import class_in_name, is_image
from data_prep.test_sets.archive import Entry, entries
from data_prep.test_sets.catalogue import CORRUPTIONS, MAPPINGS, SEVERITIES, TestSet
from data_prep.test_sets.find import devkit_of
from data_prep.test_sets.objectnet import classes_of_folders
from pipeline.core.errors import UserError, printable
from pipeline.dataset.class_lists import listed
from pipeline.dataset.format import read_classes, read_info

_WNID = re.compile(r"n\d{8}")


class LabelledImage(NamedTuple):
    """The location of an image's bytes, and its class."""

    entry: Entry
    label: int  # index into Images.classes
    part: str = ""  # ImageNet-C: corruption and severity, "fog/3"


@dataclass(frozen=True)
class Images:
    """A set's images of classes in ImageNet, and the wnids of each class (several for ObjectNet's)."""

    test_set: TestSet
    classes: tuple[tuple[str, ...], ...]
    images: tuple[LabelledImage, ...]
    partial: bool = False  # the download lacks images


def read(test_set: TestSet, downloads: Sequence[Path], cache: Path, *, partial: bool = False) -> Images:
    """``partial``: accept a download that lacks images. ``cache``: folder for unpacked downloads."""
    source = downloads[0]
    if (source / "dataset.json").is_file():
        found = list(_of_dataset(source))
    else:
        files = [entry for download in downloads for entry in entries(download, cache)]
        found = list(_of_files(test_set, files, source))
    if not found:
        raise UserError(f"{str(source)!r} contains no images of {test_set.title}: get it from {test_set.get}")
    if len(found) not in test_set.images and not partial:
        raise UserError(
            f"{str(source)!r} has {len(found):,} images, but {test_set.title} has {test_set.images[0]:,}: download it "
            "again, or add --partial to evaluate these"
        )
    classes = sorted({wnids for _, wnids, _ in found if wnids})
    index = {wnids: place for place, wnids in enumerate(classes)}
    images = (LabelledImage(entry, index[wnids], part) for entry, wnids, part in found if wnids)
    return Images(test_set, tuple(classes), tuple(images), len(found) not in test_set.images)


Found = tuple[Entry, tuple[str, ...], str]


def _of_dataset(folder: Path) -> Iterator[Found]:
    """The images of a dataset that vit shard made: its split val or test, or its only one."""
    info = read_info(folder)
    splits = {shard.split for shard in info.shards}
    split = next((name for name in ("val", "test") if name in splits), min(splits))
    wnids = read_classes(folder)["wnid"].to_pylist()
    for piece in pieces(folder, info):
        if piece.info.split != split:
            continue
        rows = rows_of(piece, ["key", "offset", "size", "label"]).to_pydict()
        for key, offset, size, label in zip(*rows.values(), strict=True):
            yield Entry(f"{key}.jpg", piece.tar, offset, size), (wnids[label],), ""


def _of_files(test_set: TestSet, files: list[Entry], source: Path) -> Iterator[Found]:
    images = [entry for entry in files if is_image(entry.name)]
    if test_set.labels == "objectnet":
        tables = {name: entry for entry in files if (name := entry.name.rpartition("/")[2]) in MAPPINGS}
        folders = classes_of_folders({name: entry.read() for name, entry in tables.items()}, source)
        yield from ((image, folders.get(_folders(image)[-1:][0], ()), "") for image in images if _folders(image))
        return
    devkit: Devkit | None = None
    numbers = listed("imagenet1k") or []
    for image in images:
        folders_of = _folders(image)
        last = folders_of[-1] if folders_of else ""
        wnid = last if _WNID.fullmatch(last) else ""
        part = ""
        if test_set.labels == "validation" and not wnid:
            if (named := class_in_name(image.name.rpartition("/")[2])) is not None:
                wnid = named[0]
            else:
                devkit = devkit or _devkit(source)
                wnid = devkit.wnid_of(image.name.rpartition("/")[2]) or ""
        elif test_set.labels == "number" and last.isdecimal() and int(last) < len(numbers):
            wnid = numbers[int(last)]
        elif test_set.labels == "corruption":
            part = _part(folders_of)
            if not part:
                continue  # the "extra" corruptions
        if not wnid:
            raise UserError(
                f"{str(source)!r} holds {printable(image.name)!r}, which is not of a class of {test_set.title}: "
                f"{test_set.get}"
            )
        yield image, (wnid,), part


def _folders(entry: Entry) -> list[str]:
    return entry.name.split("/")[:-1]


def _part(folders: list[str]) -> str:
    """``blur/defocus_blur/3/n01440764`` -> ``defocus_blur/3``."""
    for corruption, severity in itertools.pairwise(folders):
        if corruption in CORRUPTIONS and severity.isdecimal() and int(severity) in SEVERITIES:
            return f"{corruption}/{severity}"
    return ""


def _devkit(source: Path) -> Devkit:
    place = devkit_of(source)
    if place is None:
        raise UserError(
            f"{str(source)!r} needs ILSVRC2012_devkit_t12.tar.gz beside it, which names the classes of its images"
        )
    return read_devkit(place)
