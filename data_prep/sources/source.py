"""The description of INPUT (Source), a part of it that one process scans (Part), and how its tars are opened."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from data_prep.sources import names, sample_tars, streams
from data_prep.sources.devkit import Devkit
from data_prep.sources.sample_tars import Label
from data_prep.sources.tar_headers import DamagedTarError
from data_prep.sources.tar_images import Tar
from pipeline.core import retry
from pipeline.core.errors import UserError

Form = Literal["tar", "tars", "folder", "webdataset"]


@dataclass(frozen=True)
class Source:
    """What INPUT is."""

    form: Form
    locations: tuple[str, ...]  # tars, or the one folder
    seekable: bool  # else its images can only be read in order
    devkit: Devkit | None = None
    class_list: tuple[str, ...] = ()  # webdataset, folder: the class of each class number, or what --classes lists
    unordered: bool = False  # webdataset: whether the images' names may show that the numbers mean other classes
    ours: bool = False  # webdataset: made by data_prep.shard, which escapes characters of names in keys
    label: Label = sample_tars.CLS  # webdataset: the member with a sample's class
    guessed: bool = False  # whether the form was detected from INPUT
    beside: tuple[str, ...] = ()  # paths of other files in INPUT's folder

    @cached_property
    def numbered(self) -> bool:
        """Whether the class list has class numbers, so that a number in a tar can't be a class name."""
        return all(wnid.isdecimal() for wnid in self.class_list)

    @cached_property
    def names(self) -> dict[str, str]:
        """The name stored for each location: for a URL, without its query, which may be a signature and a secret.

        If locations differ only in their queries, the queries are kept.
        """
        plain = {location: re.split("[?#]", location)[0] for location in self.locations}
        signed = all(location.startswith(("https://", "http://")) for location in self.locations)
        return plain if signed and len(set(plain.values())) == len(plain) else {name: name for name in plain}


@dataclass(frozen=True)
class Part:
    """A piece of a source that one process scans."""

    source: Source
    location: str
    wnid: str = ""  # class of a class tar or folder; "" for a whole tar
    start: int = 0  # bytes: where a class tar begins in ``location``
    end: int | None = 0  # None: the end of the stream
    number: int = 0  # number of the tar if another may have images of the same classes and names
    beside: bool = False  # the other files in ``location``, beside classes or tars


def told_apart_by(source: Source) -> Callable[[int], str] | None:
    """What distinguishes images of the same name in several tars or folders, by number: the tar's name or the number.

    ``None`` if an image's name is unique, as in a dataset of vit shard and in a folder.
    """
    if source.ours or source.form == "folder":
        return None
    tars = [names.class_of_tar(source.names[location]) for location in source.locations]
    plain = len(set(tars)) == len(tars) and not any(location.startswith("pipe:") for location in source.locations)
    return tars.__getitem__ if source.form == "webdataset" and plain else "{:05d}".format


def class_of_label(source: Source, label: str) -> str:
    """The class that a label means: a name, a number in the class list, or the number itself.

    The number itself also if ``unordered``: make_plan decides what it means once it has seen all names.
    """
    if not label.isdecimal():
        name = names.class_name(label)
        if sample_tars.is_number(label) and name not in source.class_list:
            raise UserError(
                f"INPUT has the label {label!r}, which is not a class number (0, 1, 2, ...): remove these samples, or "
                "name the classes with --classes FILE"
            )
        return name
    if source.class_list and not source.numbered and label in source.class_list:
        return label
    if source.unordered:
        return f"{int(label):05d}"
    if source.class_list and int(label) >= len(source.class_list):
        raise UserError(
            f"INPUT has class number {label}, but the class list has {len(source.class_list)} classes: "
            "give its list with --classes FILE"
        )
    return source.class_list[int(label)] if source.class_list else f"{int(label):05d}"


@contextmanager
def opened_any(location: str) -> Iterator[tuple[Tar, int | None]]:
    """A tar to look at the first members of, seekable or not, and its size if it is known."""
    if streams.is_seekable(location):
        with opened(location) as found:
            yield found
    else:
        yield Tar(streams.open_stream(location).read, location, streaming=True), None


@contextmanager
def opened(location: str, number: int = 0) -> Iterator[tuple[Tar, int]]:
    """The tar at ``location``, for positioned reads, and its size."""
    fd = retry.open_file(location)
    try:
        read = lambda offset, size: retry.pread(fd, size, offset, location)  # noqa: E731
        yield Tar(read, location, streaming=False, fd=fd, number=number), os.fstat(fd).st_size
    finally:
        os.close(fd)


def checked(found: Iterator[Any], location: str) -> Iterator[Any]:
    try:
        yield from found
    except DamagedTarError as error:
        raise UserError(f"INPUT {location!r} is damaged, {error}: download it again and check its md5") from None
