"""The raw forms: what INPUT is, and its images, found without unpacking anything.

A source is cut into parts (a class each, as a rule) that processes scan side by side, each giving rows of the catalogue
and of the rejects. A stream (gzip, a pipe, a URL) is one part, and its images' bytes come along.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import braceexpand
import pyarrow as pa

from data_prep import tables as catalogue
from data_prep.images.prepare import LARGEST_FILE
from data_prep.sources import names, sample_tars, splits, streams, tar_images
from data_prep.sources.devkit import Devkit
from data_prep.sources.rows import ImageRow, RejectRow, Row
from data_prep.sources.sample_tars import Label
from data_prep.sources.tar_headers import BLOCK, DamagedTarError, Member, looks_like_tar, scan
from data_prep.sources.tar_images import Tar
from data_prep.tables import CATALOGUE
from pipeline.core import retry
from pipeline.core.errors import UserError, printable
from pipeline.dataset import format as dataset_format
from pipeline.dataset.format import REJECTS_SCHEMA

PEEKED_TARS = 16  # in which members are looked at, to tell WebDataset tars from class tars
PEEKED_MEMBERS, PEEKED_MEMBERS_MORE = 10_000, 128  # of the first tar, and of the others or of a stream
OWN_FILES = frozenset({"dataset.json", "index.parquet", "classes.parquet", "rejects.parquet", "_info.json"})
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
    label: Label = sample_tars.CLS  # webdataset: where a sample's class is
    guessed: bool = False  # whether the form was found by looking at INPUT
    beside: tuple[str, ...] = ()  # paths of what lies in INPUT's folder and isn't of the form

    @cached_property
    def numbered(self) -> bool:
        """Whether the class list is of numbers, so that a number in a tar can't be one of its names."""
        return all(wnid.isdecimal() for wnid in self.class_list)

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
    number: int = 0  # of a tar, where another may hold images of the same classes and names
    beside: bool = False  # what lies in ``location`` beside the classes or tars


def find(text: str, form: str, devkit: Devkit | None, class_list: Sequence[str] | None, label: str = "") -> Source:
    """What INPUT ``text`` is, of the given form unless that is "auto". ``label`` is --label's. Raises UserError."""
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
        entries = sorted(path.iterdir())
        locations = tuple(str(entry) for entry in entries if _is_tar(entry))
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
    beside = _beside(path, entries, locations) if path.is_dir() else ()
    seekable = all(streams.is_seekable(location) for location in locations)
    if not remote:
        for location in locations:
            _check_tar(location, seekable)
    guessed = form == "auto"
    several = path.is_dir() or len(locations) > 1
    if guessed and label:
        form = "webdataset"
    elif guessed:
        peeked = not remote and _holds_samples(text, locations, several)
        form = "webdataset" if peeked or (remote and several) else "tars" if several else "tar"
    if label and form != "webdataset":
        raise UserError(f"--label {label} is for WebDataset tars, and --source {form} takes classes from names")
    if form == "webdataset":
        own = _meaning(_classes_beside(locations[0]), class_list)
        made = not remote and is_ours(Path(locations[0]).parent)
        where = sample_tars.read_label(label)
        return Source("webdataset", locations, seekable, devkit, own, made, where, guessed, () if made else beside)
    if form == "tars" and not devkit:
        _check_class_tars(text, locations)
    kind: Form = "tar" if form == "tar" else "tars"
    return Source(kind, locations, seekable, devkit, guessed=guessed, beside=beside)


def _is_tar(path: Path) -> bool:
    return names.is_tar(path.name) and not names.is_system(path.name) and not path.is_dir()


def _beside(folder: Path, entries: Sequence[Path], locations: Sequence[str]) -> tuple[str, ...]:
    """What lies beside the tars of a folder. Raises UserError for tars that can't be read."""
    rest = [entry for entry in entries if str(entry) not in locations and entry.name not in OWN_FILES]
    for entry in rest:
        if names.is_packed_tar(entry.name) and not names.is_system(entry.name) and not entry.is_dir():
            raise UserError(
                f"INPUT {str(folder)!r} holds {entry.name!r} among its tars, of a compression that can't be read: "
                "unpack it to a .tar, or move it out of the folder"
            )
    return tuple(str(entry) for entry in rest)


def _check_class_tars(text: str, locations: Sequence[str]) -> None:
    """Raise UserError where tars are of splits, or two of one folder are of one class."""
    paths = [location.split("?")[0] for location in locations if not location.startswith("pipe:")]
    stems = {path: names.class_of_tar(path) for path in paths}
    found = splits.among(set(stems.values()))
    if not found and len(stems) == 1 and len(locations) == 1 and splits.has_word(stems[paths[0]]):
        found = [splits.Split(stems[paths[0]], splits.split_of(stems[paths[0]]))]
    if found:
        where = {stem: path for path, stem in stems.items()}
        raise splits.error_of_tars(text, [splits.Split(where[name], split) for name, split in found])
    folders = {str(Path(path).parent) for path in paths}
    if among := splits.in_paths(folders):
        raise splits.error_of_tars(text, [splits.Split(f"/{name}", split) for name, split in among])
    seen: dict[tuple[str, str], str] = {}
    for path, stem in stems.items():
        other = seen.setdefault((str(Path(path).parent), stem), path)
        if other != path:
            raise UserError(
                f"INPUT {text!r} holds {Path(other).name!r} and {Path(path).name!r}, both of class {stem!r}: leave one "
                "of them there (an unpacking that was interrupted leaves both)"
            )


def _subfolders(folder: str | Path) -> list[str]:
    """Names of the folders in it, sorted, without hidden ones and those of file managers."""
    found = [entry for entry in _entries(folder) if not names.is_system(entry.name) and _is(entry, os.DirEntry.is_dir)]
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


def _holds_samples(text: str, locations: Sequence[str], several: bool) -> bool:
    """Whether tars are WebDataset's, by the first members of some of them. Raises UserError if no label is there."""
    step = -(-len(locations) // PEEKED_TARS)
    seen = sample_tars.Peek()
    for place, location in enumerate(dict.fromkeys([*locations[::step], locations[-1]])):
        with _opened_any(location) as (tar, size):
            most = PEEKED_MEMBERS if size is not None and not place else PEEKED_MEMBERS_MORE
            try:
                sample_tars.peek(seen, scan(tar.read, 0, size, tar.fd), tar.read, most, several)
            except DamagedTarError:
                continue
    if seen.samples and not seen.labelled:
        raise UserError(sample_tars.no_label(text, seen))
    return seen.samples


def parts(source: Source) -> list[Part]:
    """The parts of a source, in the order they lie there. Raises UserError where there are none."""
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
    """The splits that WebDataset tars belong to, sorted: by their data set if it is ours, else by their names."""
    if source.form != "webdataset":
        return []
    paths = [Path(name) for name in source.names.values()]
    known = (
        {info.file_name: info.split for info in dataset_format.read_info(paths[0].parent).shards} if source.ours else {}
    )
    return sorted({known.get(path.name) or splits.split_of(path.name) for path in paths})


def told_apart_by(source: Source) -> Callable[[int], str] | None:
    """What tells images of one name in several tars or folders apart, by number: a tar's name, or the number itself.

    ``None`` where an image's name stands for one image, as in a dataset of ours and in a folder.
    """
    if source.ours or source.form == "folder":
        return None
    tars = [names.class_of_tar(source.names[location]) for location in source.locations]
    plain = len(set(tars)) == len(tars) and not any(location.startswith("pipe:") for location in source.locations)
    return tars.__getitem__ if source.form == "webdataset" and plain else "{:05d}".format


def _tar_parts(source: Source) -> list[Part]:
    (location,) = source.locations
    found: list[Part] = []
    numbers: dict[str, int] = {}  # by a class tar's name, which may come twice
    packed: Member | None = None
    folders = tar_images.Folders()
    loose = False
    with _opened(location) as (tar, size):
        for member in _checked(scan(tar.read, 0, size, whole=True), location):
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
        raise UserError(f"INPUT {location!r} is an empty tar: it holds no images and no <wnid>.tar members")
    return [*found, *([Part(source, location)] if loose else [])]


def _folder_parts(source: Source) -> list[Part]:
    (location,) = source.locations
    if source.devkit:  # which knows the classes by the images' names
        return [Part(source, location)]
    if found := splits.in_folder(Path(location)):
        raise splits.error_in_folder(location, found)
    folders = _subfolders(location)
    if not folders:
        if any(names.class_in_name(path.name) for path in Path(location).iterdir()):
            return [Part(source, location)]
        raise UserError(
            f"INPUT {location!r} has no class folders and no tars: images must lie in INPUT/<class>/<image>"
        )
    wnids = [names.class_name(wnid) for wnid in _numbered(source, folders) or folders]
    by_name: dict[str, str] = {}
    for name, wnid in zip(folders, wnids, strict=True):
        if wnid in by_name:
            raise UserError(
                f"INPUT {location!r} holds the folders {printable(by_name[wnid])!a} and {printable(name)!a}, which "
                f"are one class, {wnid!r}: move the images of one to the other"
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
    return [_class_name(source, name) for name in folders]


def rows(part: Part, on_bytes: Any = lambda _: None) -> Iterator[Row]:
    """What one part holds. ``on_bytes`` is told of the bytes read from a stream."""
    source = part.source
    if part.beside:
        yield from _rows_beside(part)
    elif source.form == "folder":
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
        return sample_tars.samples(tar, size, source.label, lambda label: _class_name(source, label), name_of)
    if part.wnid:
        alone = source.form == "tars"
        return tar_images.class_tar(tar, part.start, part.end, part.wnid, whole=alone, guessed=source.guessed and alone)
    return tar_images.release_tar(tar, size, source.devkit, nested=not source.seekable)


def _class_name(source: Source, label: str) -> str:
    """The class that a label means: a number in the class list, a number without one, or a name."""
    if not label.isdecimal():
        name = names.class_name(label)
        if sample_tars.is_number(label) and name not in source.class_list:
            raise UserError(
                f"INPUT has the label {label!r}, which is no class number (0, 1, 2, ...): leave these samples out (-1 "
                "marks images without a label), or name the classes by --classes FILE"
            )
        return name
    if source.class_list and not source.numbered and label in source.class_list:
        return label
    if source.class_list and int(label) >= len(source.class_list):
        raise UserError(
            f"INPUT has class number {label}, but the class list has {len(source.class_list)} classes: "
            "give the list it was made with by --classes FILE"
        )
    return source.class_list[int(label)] if source.class_list else f"{int(label):05d}"


@contextmanager
def _opened_any(location: str) -> Iterator[tuple[Tar, int | None]]:
    """A tar to look at the first members of, seekable or not, and its size if it is known."""
    if streams.is_seekable(location):
        with _opened(location) as opened:
            yield opened
    else:
        yield Tar(streams.open_stream(location).read, location, streaming=True), None


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
    empty = bool(part.wnid)
    for entry in _walk(part.location):
        inside = os.path.relpath(entry.path, part.location)
        found = _file_row(part, entry, inside, entry.name if devkit else inside)
        empty = empty and not isinstance(found, ImageRow)
        yield found
    if empty:
        yield RejectRow(f"{part.wnid}/", part.wnid, 0, "empty_class", tar_images.EMPTY_CLASS)


def _file_row(part: Part, entry: "os.DirEntry[str]", inside: str, name: str) -> Row:
    devkit = part.source.devkit
    wnid = (devkit.wnid_of(entry.name) or "") if devkit else part.wnid
    if not wnid and (named := names.class_in_name(entry.name)) and not devkit and "/" not in inside:
        wnid, name = named
    source = printable(f"{part.wnid}/{inside}" if part.wnid else name)
    if names.is_system_path(inside):
        return RejectRow(source, wnid, _size_of(entry), "system_file", tar_images.SYSTEM_FILE)
    if not _is(entry, os.DirEntry.is_file):
        return RejectRow(source, wnid, 0, "not_a_file", "neither a file nor a link to one")
    size = retry.steadily(entry.stat, entry.path).st_size
    if not names.is_image(entry.name):
        return RejectRow(source, wnid, size, "other_file", "the ending is no image's")
    if size > LARGEST_FILE:
        return RejectRow(source, wnid, size, "too_large", f"{size:,} bytes, more than {LARGEST_FILE:,}")
    if not wnid:
        return RejectRow(source, "", size, "no_class", "not a name of the --devkit" if devkit else "in no class folder")
    return ImageRow(wnid, printable(name), entry.path, 0, size)


def _rows_beside(part: Part) -> Iterator[Row]:
    """The files in INPUT's folder that belong to none of its classes or tars."""
    source = part.source
    for entry in _entries(part.location):
        if source.form == "folder" and _is(entry, os.DirEntry.is_dir) and not names.is_system(entry.name):
            continue
        if source.form != "folder" and entry.path not in source.beside:
            continue
        for file in _walk(entry.path) if entry.is_dir(follow_symlinks=False) else [entry]:
            inside = os.path.relpath(file.path, part.location)
            yield _reject_beside(file, printable(inside), source.form)


def _reject_beside(entry: "os.DirEntry[str]", inside: str, form: Form) -> RejectRow:
    size = _size_of(entry)
    if names.is_system_path(inside):
        return RejectRow(inside, "", size, "system_file", tar_images.SYSTEM_FILE)
    what = "class folders" if form == "folder" else "tars"
    if not names.is_image(entry.name):
        return RejectRow(inside, "", size, "other_file", f"beside the {what}, and no image by its ending")
    return RejectRow(inside, "", size, "no_class", f"an image beside the {what}")


def _size_of(entry: "os.DirEntry[str]") -> int:
    return retry.steadily(lambda: entry.stat(follow_symlinks=False), entry.path).st_size


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
    """All files below a folder, in the order of names; of a system's folder that can't be read, nothing."""
    try:
        entries = _entries(folder)
    except PermissionError:
        if not names.is_system(Path(folder).name):
            raise
        return
    for entry in entries:
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
