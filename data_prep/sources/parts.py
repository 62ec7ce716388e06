"""Cut a source into parts that processes scan in parallel, usually one class each.

A stream (gzip, a pipe, a URL) is one part.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.sources import names, splits, streams, tar_images
from data_prep.sources.folders import class_folders
from data_prep.sources.source import Part, Source, checked, class_of_label, opened
from data_prep.sources.tar_headers import Member, scan
from pipeline.core.errors import UserError, printable
from pipeline.dataset import format as dataset_format


def find_parts(source: Source) -> list[Part]:
    """The parts of a source, in its order. Raises UserError if there are none."""
    if source.form == "folder":
        return _folder_parts(source)
    more = [Part(source, str(Path(source.locations[0]).parent), beside=True)] if source.beside else []
    if source.form == "tars" and not any(location.startswith("pipe:") for location in source.locations):
        return more + [
            Part(source, location, names.class_of_tar(source.names[location]), 0, _size(location), number)
            for number, location in enumerate(source.locations)
        ]
    if not source.seekable or source.form == "webdataset":
        return more + [Part(source, location, number=number) for number, location in enumerate(source.locations)]
    return _tar_parts(source)


def _size(location: str) -> int | None:
    return Path(location).stat().st_size if streams.is_seekable(location) else None


def splits_of(source: Source) -> list[str]:
    """The splits of WebDataset tars, sorted: from dataset.json if vit shard made them, otherwise from their names."""
    if source.form != "webdataset":
        return []
    paths = [Path(name) for name in source.names.values()]
    known = (
        {info.file_name: info.split for info in dataset_format.read_info(paths[0].parent).shards} if source.ours else {}
    )
    return sorted({known.get(path.name) or splits.split_of(path.name) for path in paths})


def _tar_parts(source: Source) -> list[Part]:
    (location,) = source.locations
    found: list[Part] = []
    numbers: dict[str, int] = {}  # by a class tar's name, which may come twice
    packed: Member | None = None
    folders = tar_images.Folders()
    loose = False
    with opened(location) as (tar, size):
        for member in checked(scan(tar.read, 0, size, whole=True), location):
            if tar_images.is_class_tar(member):
                folders.of(printable(member.name).rpartition("/")[0])
                wnid, end = names.class_of_tar(member.name), member.offset + member.size
                number = numbers.setdefault(member.name, len(numbers))
                found.append(Part(source, location, wnid, member.offset, end, number))
            elif member.kind != "directory":
                packed = member if names.is_packed_tar(member.name) else packed
                loose = True
    if found and folders.splits:
        raise splits.error_in_tar(location, folders.all_splits())
    if found and packed:
        raise tar_images.packed_class_tar(location, packed)
    if not found and not loose:
        raise UserError(f"INPUT {location!r} is an empty tar: it contains no images and no <wnid>.tar members")
    return [*found, *([Part(source, location)] if loose else [])]


def _folder_parts(source: Source) -> list[Part]:
    (location,) = source.locations
    if source.devkit:  # which knows the classes by the images' names
        return [Part(source, location)]
    if found := splits.in_folder(Path(location)):
        raise splits.error_in_folder(location, found)
    folders = class_folders(location)
    if not folders:
        if any(names.class_in_name(path.name) for path in Path(location).iterdir()):
            return [Part(source, location)]
        raise UserError(f"INPUT {location!r} has no class folders and no tars: images must be at INPUT/<class>/<image>")
    wnids = [names.class_name(wnid) for wnid in _numbered(source, folders) or folders]
    by_name: dict[str, str] = {}
    for name, wnid in zip(folders, wnids, strict=True):
        if wnid in by_name:
            raise UserError(
                f"INPUT {location!r} contains the folders {printable(by_name[wnid])!a} and {printable(name)!a}, which "
                f"are the same class, {wnid!r}: move the images of one to the other"
            )
        by_name[wnid] = name
    classes = [Part(source, str(Path(location) / name), wnid) for wnid, name in by_name.items()]
    return [*classes, Part(source, location, beside=True)]


def _numbered(source: Source, folders: Sequence[str]) -> list[str]:
    """The wnids of folders that are named by their class's number, as ImageNet-V2's are; empty for other names.

    "10" sorts before "2": the number counts, not the place. Raises UserError for a number that the list doesn't have.
    """
    known = source.class_list
    if not known or not all(name.isdecimal() for name in folders) or not set(known).isdisjoint(folders):
        return []
    return [class_of_label(source, name) for name in folders]
