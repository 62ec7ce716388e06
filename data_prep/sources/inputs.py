"""The raw forms: what INPUT is, and its images, found without unpacking anything.

A source is cut into parts (a class each, as a rule) that processes scan side by side, each giving rows of the catalogue
and of the rejects. A stream (gzip, a pipe, a URL) is one part, and its images' bytes come along.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import braceexpand
import pyarrow as pa

from data_prep import tables as catalogue
from data_prep.images.prepare import LARGEST_FILE
from data_prep.sources import streams, tar_images
from data_prep.sources.devkit import Devkit
from data_prep.sources.rows import ImageRow, RejectRow, Row
from data_prep.sources.tar_headers import BLOCK, DamagedTarError, looks_like_tar, scan
from data_prep.sources.tar_images import ENDINGS, Tar
from data_prep.tables import CATALOGUE
from pipeline.core import retry
from pipeline.core.errors import UserError, printable
from pipeline.dataset import format as dataset_format
from pipeline.dataset.format import REJECTS_SCHEMA

Form = Literal["tar", "tars", "folder", "webdataset"]


@dataclass(frozen=True)
class Source:
    """What INPUT is."""

    form: Form
    locations: tuple[str, ...]  # tars, or the one folder
    seekable: bool  # else its images can only be read in order
    devkit: Devkit | None = None
    class_list: tuple[str, ...] = ()  # webdataset, folder: the wnid of each class number, where known
    ours: bool = False  # webdataset: made by data_prep.shard, which escapes characters of names in keys

    @cached_property
    def names(self) -> dict[str, str]:
        """What is kept of each location: a URL without the query that signs it, anew each time, and may be a secret.

        Where the queries alone tell locations apart they are names.
        """
        plain = {location: re.split("[?#]", location)[0] for location in self.locations}
        signed = all(location.startswith(("https://", "http://")) for location in self.locations)
        return plain if signed and len(set(plain.values())) == len(plain) else {name: name for name in plain}


@dataclass(frozen=True)
class Part:
    """A piece of a source that one process scans."""

    source: Source
    location: str
    wnid: str = ""  # of a class's tar or folder; "" for a whole tar
    start: int = 0  # bytes, of a class's tar inside ``location``
    end: int | None = 0  # None: where the stream ends
    number: int = 0  # of a WebDataset tar


def find(text: str, form: str, devkit: Devkit | None, class_list: Sequence[str] | None) -> Source:
    """What INPUT ``text`` is, of the given form unless that is "auto". Raises UserError."""
    remote = streams.is_remote(text)
    url = urlsplit(text) if "://" in text and not text.startswith("pipe:") else None
    if url and (url.username or url.password):
        raise UserError(
            f"INPUT '{url.scheme}://...{url.path}' is a URL with a login, which the plan and the list of rejects would "
            "keep: put the login into ~/.netrc or, for s3, into the AWS variables"
        )
    text = text if remote else str(Path(text).absolute())  # a run may be resumed from another folder
    path = Path(text)
    if remote or ("{" in text and not path.exists()):
        try:
            locations = tuple(braceexpand.braceexpand(text, escape=False))
        except ValueError:  # unbalanced braces
            if not remote:
                raise UserError(f"INPUT {text!r} does not exist, and its braces don't match") from None
            locations = (text,)
        for location in locations:
            if not remote and not Path(location).is_file():
                raise UserError(f"INPUT {text!r}: {location!r} does not exist")
    elif not path.exists():
        raise UserError(f"INPUT {text!r} does not exist: give the release's tar, a folder of class folders or of tars")
    elif path.is_dir():
        locations = tuple(str(tar) for tar in sorted(path.glob("*.tar")) if not tar.name.startswith("."))
        folders = bool(_subfolders(path))
        if locations and folders and form == "auto":
            raise UserError(
                f"INPUT {text!r} holds both tars and folders: say which by --source folder or --source tars"
            )
        if form == "folder" or not locations:
            return Source("folder", (text,), True, devkit, tuple(class_list or ()))
    elif not path.is_file():
        raise UserError(f"INPUT {text!r} is neither a file nor a folder: give 'pipe:COMMAND' for what a command writes")
    else:
        locations = (text,)
    if form == "tar" and len(locations) > 1:
        raise UserError(f"INPUT {text!r} is {len(locations)} tars, and --source tar means one: give --source tars")
    seekable = all(streams.is_seekable(location) for location in locations)
    if not remote:
        for location in locations:
            _check_tar(location, seekable)
    if form == "auto":
        peeked = not remote and _has_samples(locations[0], seekable)
        several = path.is_dir() or len(locations) > 1
        form = "webdataset" if peeked or (remote and several) else "tars" if several else "tar"
    if form == "webdataset":
        own = _meaning(_classes_beside(locations[0]), class_list)
        return Source("webdataset", locations, seekable, devkit, own, not remote and is_ours(Path(locations[0]).parent))
    return Source("tar" if form == "tar" else "tars", locations, seekable, devkit)


def _subfolders(folder: str | Path) -> list[str]:
    """Names of the folders in it, sorted; those with a leading dot are none of ours."""
    found = [entry for entry in _entries(folder) if not entry.name.startswith(".") and _is(entry, os.DirEntry.is_dir)]
    for entry in found:
        if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
            raise UserError(f"{entry.path!r} is a link to a folder that it lies in, not to one of a class: remove it")
    return sorted(entry.name for entry in found)


def _classes_beside(location: str) -> Sequence[str]:
    folder = Path(location).parent
    if streams.is_remote(location) or not (folder / "classes.parquet").is_file():
        return ()
    wnids: list[str] = dataset_format.read_classes(folder)["wnid"].to_pylist()
    return wnids


def _meaning(beside: Sequence[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """The wnids that numbers in the tars mean: those of the list beside them, unless it only repeats the numbers."""
    numbers = all(wnid.isdecimal() and int(wnid) == number for number, wnid in enumerate(beside))
    return tuple((asked or beside) if numbers else beside)


def is_ours(folder: Path) -> bool:
    """Whether data_prep.shard has made the data set in ``folder``; not where what says so is damaged."""
    try:
        return (folder / "dataset.json").is_file() and "made_by" not in dataset_format.read_info(folder).options
    except UserError:
        return False


def _check_tar(location: str, seekable: bool) -> None:
    start = streams.open_stream(location).read(0, BLOCK)
    if not start:
        raise UserError(f"INPUT {location!r} is empty (0 bytes): download it again")
    if not looks_like_tar(start):
        kind = "tar" if seekable else "gzipped tar"
        raise UserError(
            f"INPUT {location!r} is no {kind} and no folder (it starts with {start[:8].hex(' ')}): name a release's "
            "tar, a folder of tars, or a folder that holds a folder of images for each class"
        )


def _has_samples(location: str, seekable: bool) -> bool:
    """Whether the first members look like WebDataset's: a class beside an image."""
    with _opened(location) if seekable else nullcontext(None) as opened:
        read = opened[0].read if opened else streams.open_stream(location).read
        try:
            for member in islice(scan(read, 0, None), 64):
                if member.name.endswith(".cls"):
                    return True
                if tar_images.is_class_tar(member):  # gigabytes of a stream, to look behind a few of these
                    return False
        except DamagedTarError:
            pass
    return False


def parts(source: Source) -> list[Part]:
    """The parts of a source, in the order they lie there. Raises UserError where there are none."""
    if source.form == "folder":
        return _folder_parts(source)
    if source.form == "tars" and not any(location.startswith("pipe:") for location in source.locations):
        return [
            Part(source, location, tar_images.class_of_tar(source.names[location]), 0, _size(location))
            for location in source.locations
        ]
    if not source.seekable or source.form == "webdataset":
        return [Part(source, location, number=number) for number, location in enumerate(source.locations)]
    return _tar_parts(source)


def _size(location: str) -> int | None:
    return Path(location).stat().st_size if streams.is_seekable(location) else None


def splits(source: Source) -> list[str]:
    """The splits that WebDataset tars belong to, sorted: by their data set if it is ours, else by their names."""
    if source.form != "webdataset":
        return []
    paths = [Path(name) for name in source.names.values()]
    known = (
        {info.file_name: info.split for info in dataset_format.read_info(paths[0].parent).shards} if source.ours else {}
    )
    return sorted({known.get(path.name) or tar_images.split_of(path.name) for path in paths})


def told_apart_by(source: Source) -> list[str]:
    """What tells images of one name in several tars apart: the tars' names, or their numbers where those repeat.

    Empty where an image's name stands for one image, as in a release.
    """
    if source.form != "webdataset" or source.ours or len(source.locations) == 1:
        return []
    names = [tar_images.class_of_tar(source.names[location]) for location in source.locations]
    plain = len(set(names)) == len(names) and not any(location.startswith("pipe:") for location in source.locations)
    return names if plain else [f"{number:05d}" for number in range(len(names))]


def _tar_parts(source: Source) -> list[Part]:
    (location,) = source.locations
    found: list[Part] = []
    loose = False
    with _opened(location) as (tar, size):
        for member in _checked(scan(tar.read, 0, size, whole=True), location):
            if tar_images.is_class_tar(member):
                wnid = tar_images.class_of_tar(member.name)
                found.append(Part(source, location, wnid, member.offset, member.offset + member.size))
            elif not tar_images.is_ignored(member):
                loose = True
    if loose:
        found.append(Part(source, location))
    if not found:
        raise UserError(f"INPUT {location!r} is an empty tar: it holds no images and no <wnid>.tar members")
    return found


def _folder_parts(source: Source) -> list[Part]:
    (location,) = source.locations
    folders = _subfolders(location)
    splits = [name for name in folders if name in tar_images.SPLITS]
    if source.devkit:  # which knows the classes by the images' names
        return [Part(source, location)]
    if splits and len(splits) == len(folders):
        raise UserError(
            f"INPUT {location!r} holds the splits {', '.join(splits)}, not classes: shard one after another, such as "
            f"{str(Path(location) / splits[0])!r} with --split {splits[0]}"
        )
    if not folders:
        raise UserError(
            f"INPUT {location!r} has no class folders and no tars: images must lie in INPUT/<class>/<image>"
        )
    wnids = _numbered(source, folders) or folders
    return [
        Part(source, str(Path(location) / name), printable(wnid)) for name, wnid in zip(folders, wnids, strict=True)
    ]


def _numbered(source: Source, folders: Sequence[str]) -> list[str]:
    """The wnids of folders that are named by their class's number, as ImageNet-V2's are; empty for other names.

    "10" sorts before "2": the number counts, not the place. Raises UserError for a number that the list doesn't have.
    """
    known = source.class_list
    if not known or not all(name.isdecimal() for name in folders) or not set(known).isdisjoint(folders):
        return []
    return [_class_name(source, name) for name in folders]


def rows(part: Part, on_bytes: Any = lambda _: None) -> Iterator[Row]:
    """What one part holds. ``on_bytes`` is told of the bytes read from a stream."""
    source = part.source
    if source.form == "folder":
        yield from _folder_rows(part)
    elif source.seekable:
        with _opened(part.location, part.number) as (tar, size):
            yield from _checked(_tar_rows(part, tar, size), part.location)
    else:
        stream = streams.open_stream(part.location, on_bytes)
        tar = Tar(stream.read, source.names[part.location], streaming=True, number=part.number)
        yield from _checked(_tar_rows(part, tar, None), part.location)
        while not stream.ended:  # what follows the tar: its end decides whether gzip's checksum and the command held
            stream.skip()


def _tar_rows(part: Part, tar: Tar, size: int | None) -> Iterator[Row]:
    source = part.source
    if source.form == "webdataset":
        name_of = unquote if source.ours else str
        return tar_images.samples(tar, size, lambda label: _class_name(source, label), name_of)
    if part.wnid:
        return tar_images.class_tar(tar, part.start, part.end, part.wnid, whole=source.form == "tars")
    return tar_images.release_tar(tar, size, source.devkit, nested=not source.seekable)


def _class_name(source: Source, label: str) -> str:
    """The class a ``.cls`` member means: a number in the class list, a number without one, or a wnid itself."""
    if not label.isdecimal():
        return label
    if source.class_list and int(label) >= len(source.class_list):
        raise UserError(
            f"INPUT has class number {label}, but the class list has {len(source.class_list)} classes: "
            "give the list it was made with by --classes FILE"
        )
    return source.class_list[int(label)] if source.class_list else f"{int(label):05d}"


@contextmanager
def _opened(location: str, number: int = 0) -> Iterator[tuple[Tar, int]]:
    """The tar at ``location``, for positioned reads, and its size."""
    fd = retry.open_file(location)
    try:
        read = lambda offset, size: retry.pread(fd, size, offset, location)  # noqa: E731
        yield Tar(read, location, streaming=False, fd=fd, number=number), os.fstat(fd).st_size
    finally:
        os.close(fd)


def _checked(found: Iterator[Any], location: str) -> Iterator[Any]:
    try:
        yield from found
    except DamagedTarError as error:
        raise UserError(f"INPUT {location!r} is damaged, {error}: download it again and check its md5") from None


def _folder_rows(part: Part) -> Iterator[Row]:
    devkit = part.source.devkit
    for entry in _walk(part.location):
        inside = entry.name if devkit else os.path.relpath(entry.path, part.location)
        wnid = (devkit.wnid_of(entry.name) or "") if devkit else part.wnid
        source = printable(f"{part.wnid}/{inside}" if part.wnid else inside)
        if not _is(entry, os.DirEntry.is_file):
            yield RejectRow(source, wnid, 0, "not_a_file", "neither a file nor a link to one")
            continue
        size = retry.steadily(entry.stat, entry.path).st_size
        if entry.name.rpartition(".")[2].lower() not in ENDINGS:
            yield RejectRow(source, wnid, size, "other_file", "the ending is no image's")
        elif size > LARGEST_FILE:
            yield RejectRow(source, wnid, size, "too_large", f"{size:,} bytes, more than {LARGEST_FILE:,}")
        elif not wnid:
            yield RejectRow(source, "", size, "no_class", "not a name of the --devkit")
        else:
            yield ImageRow(wnid, printable(inside), entry.path, 0, size)


def _is(entry: "os.DirEntry[str]", kind: Callable[["os.DirEntry[str]"], bool]) -> bool:
    try:
        return retry.steadily(lambda: kind(entry), entry.path)
    except OSError:  # a link to itself
        return False


def _entries(folder: str | Path) -> list["os.DirEntry[str]"]:
    def read() -> list["os.DirEntry[str]"]:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    return retry.steadily(read, folder)


def _walk(folder: str) -> Iterator["os.DirEntry[str]"]:
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry


def tables(found: Sequence[Row]) -> tuple[pa.Table, pa.Table]:
    """CATALOGUE and REJECTS_SCHEMA rows."""
    images = [row for row in found if isinstance(row, ImageRow)]
    rejects = [row for row in found if isinstance(row, RejectRow)]
    encoded = {file: os.fsencode(file) for file in {row.file for row in images}}
    records = [(row.wnid, row.name, encoded[row.file], row.offset, row.size, row.tar) for row in images]
    return catalogue.table(records, CATALOGUE), catalogue.table(rejects, REJECTS_SCHEMA)


def scan_part(part: Part) -> tuple[pa.Table, pa.Table]:
    """CATALOGUE and REJECTS_SCHEMA rows of one part of a seekable source or folder."""
    return tables(list(rows(part)))
