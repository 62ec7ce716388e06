"""From tar members to images: which member is an image of which class, and which is skipped for which reason."""

from collections.abc import Iterator
from typing import NamedTuple

from data_prep.images.prepare import LARGEST_FILE
from data_prep.sources import splits
from data_prep.sources.devkit import Devkit
from data_prep.sources.names import (
    class_in_name,
    class_name,
    class_of_tar,
    is_image,
    is_packed_tar,
    is_system_path,
)
from data_prep.sources.rows import OTHER_FILE, ImageRow, RejectRow, Row
from data_prep.sources.tar_headers import Member, Read, scan
from pipeline.core.errors import UserError, printable

SYSTEM_FILE = "a hidden file or a file manager's file, not an image"  # detail of a reject
EMPTY_CLASS = "the class has no images"


class Tar(NamedTuple):
    """A tar to walk: how to read it, and the location that its rows state."""

    read: Read
    file: str
    streaming: bool
    fd: int | None = None  # file descriptor, if it isn't a stream
    number: int = 0  # number among a source's tars

    def image(self, wnid: str, name: str, member: Member) -> ImageRow:
        data = self.read(member.offset, member.size) if self.streaming else b""
        if self.streaming and len(data) < member.size:
            raise UserError(f"INPUT {self.file!r} is cut short inside {member.name!r}: download it again")
        return ImageRow(wnid, name, self.file, member.offset, member.size, data, self.number)


def problem(member: Member, wnid: str, where: str = "") -> RejectRow | None:
    """Why a member that isn't a directory can't be used; ``None`` for a plain file with an image's name."""
    name = member.name
    if member.kind != "file":
        reason, detail = "not_a_file", f"the tar member is a {member.kind}"
    elif name == ".." or name.startswith(("/", "../")) or "/../" in name or name.endswith("/.."):
        reason, detail = "unsafe_path", "the tar member's path leaves its folder"
    elif not is_image(name):
        reason, detail = OTHER_FILE, "not an image extension"
    elif member.size > LARGEST_FILE:
        reason, detail = "too_large", f"{member.size:,} bytes, more than {LARGEST_FILE:,}"
    else:
        return None
    return RejectRow(printable(where + name), wnid, member.size, reason, detail)


def is_class_tar(member: Member) -> bool:
    return member.kind == "file" and member.name.lower().endswith(".tar") and not is_system_path(member.name)


def packed_class_tar(file: str, member: Member) -> UserError:
    """The error for a compressed tar among class tars: without it, its class would be missing."""
    return UserError(
        f"INPUT {file!r} holds the compressed tar {printable(member.name)!r} among class tars, which can't be read: "
        "unpack INPUT and decompress this tar"
    )


def system_file(member: Member, where: str = "") -> RejectRow:
    return RejectRow(printable(where + member.name), "", member.size, "system_file", SYSTEM_FILE)


def class_tar(
    tar: Tar, start: int, end: int | None, wnid: str, *, whole: bool = False, guessed: bool = False
) -> Iterator[Row]:
    """The images of one class's tar; ``whole`` if it is a file by itself. Yields a reject if it holds no images.

    ``guessed``: that it is of one class was a guess, so labels in it are a UserError, and a tar that is named after a
    split has its images' classes in their names, if they have any: Hugging Face's ``train_images_0.tar.gz``.
    """
    before = ""  # name of the previous image
    of_split = guessed and splits.has_word(wnid)
    for member in scan(tar.read, start, end, tar.fd, whole=whole):
        name = member.name
        if (  # the common case: there are millions
            member.kind == "file"
            and is_image(name)
            and "/" not in name
            and name.isascii()
            and name[0] != "."
            and member.size <= LARGEST_FILE
            and not of_split
        ):
            yield tar.image(wnid, name, member)
            before = name
            continue
        if member.kind == "directory":
            continue
        if is_system_path(name):
            yield system_file(member, f"{wnid}.tar/")
            continue
        reject = problem(member, wnid, f"{wnid}.tar/")
        if reject:
            if guessed and reject.reason == OTHER_FILE and _is_of_sample(name, before):
                raise UserError(
                    f"INPUT {tar.file!r} holds WebDataset samples, such as {printable(name)!r} beside "
                    f"{printable(before)!r}: give --source webdataset with --label for the member with the "
                    "class, or --source tars if each tar is one class"
                )
            yield reject
            continue
        before = name
        parts = [part for part in printable(member.name).split("/") if part not in ("", ".")]
        if of_split and (named := class_in_name(parts[-1])):
            yield tar.image(named[0], named[1], member)
            continue
        inside = parts[1:] if len(parts) > 1 and parts[0] == wnid else parts
        yield tar.image(wnid, "/".join(inside), member)
    if not before:
        yield RejectRow(f"{wnid}.tar", wnid, 0, "empty_class", EMPTY_CLASS)


def stem_of(name: str) -> tuple[str, str]:
    """A WebDataset member's key and what follows its dot: ``a.b/1.input.jpg`` -> ``a.b/1``, ``input.jpg``."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return f"{folder}{slash}{stem}", ending


def _is_of_sample(name: str, image: str) -> bool:
    return name.lower().endswith(".cls") or stem_of(name)[0] == stem_of(image)[0]


def release_tar(tar: Tar, end: int | None, devkit: Devkit | None, nested: bool) -> Iterator[Row]:
    """A release's tar: ``<class>/<image>`` members, validation images (with ``devkit``), class tars if ``nested``.

    Class folders lie as deep as the first one: what lies deeper or higher is rejected, for want of a class. Raises
    UserError for a tar of splits; only at its end if it can be read again, to name all of them.
    """
    depth = 0
    folders = Folders()
    class_tars: dict[str, int] = {}
    packed: Member | None = None
    for member in scan(tar.read, 0, end, whole=True):
        folder, _, name = printable(member.name).rpartition("/")
        if is_system_path(member.name):
            if member.kind != "directory":
                yield system_file(member)
            continue
        if member.kind == "directory":
            folders.empty.add("/".join(_parts(f"{folder}/{name}")))
            continue
        parts = folders.of(folder)
        if folders.splits and not devkit:
            if tar.streaming:
                raise splits.error_in_tar(tar.file, folders.splits)
            continue
        if is_class_tar(member):
            if nested:
                number = class_tars.setdefault(member.name, len(class_tars))
                inner = tar._replace(number=number)
                yield from class_tar(inner, member.offset, member.offset + member.size, class_of_tar(name))
            continue
        packed = member if is_packed_tar(name) else packed
        if packed and class_tars:
            raise packed_class_tar(tar.file, packed)
        in_name = not devkit and (not parts or splits.has_word(parts[-1]))  # val_images/..._n01440764.JPEG
        named = class_in_name(name) if in_name else None
        wnid = (devkit.wnid_of(name) if devkit else None) or (named[0] if named else parts[-1] if parts else "")
        wnid = class_name(wnid)
        reject = problem(member, wnid)
        if reject:
            yield reject
        elif named:
            yield tar.image(wnid, named[1], member)
        elif not wnid:
            raise UserError(
                f"INPUT {tar.file!r} has images without a class, such as {name!r}: images must lie in <wnid>.tar "
                "members or in class folders; for ILSVRC2012's validation tar give --devkit, for samples with .cls, "
                ".json or .txt members --source webdataset with --label, for the gzipped tar of one class unpack it"
            )
        elif devkit and not devkit.wnid_of(name):
            yield RejectRow(printable(member.name), "", member.size, "no_class", "not a name of the --devkit")
        elif not devkit and len(parts) != (depth := depth or len(parts)):
            detail = f"its folder is {len(parts)} deep, the first image's {depth}: which one is its class?"
            yield RejectRow(printable(member.name), "", member.size, "no_class", detail)
        else:
            yield tar.image(wnid, name, member)._replace(tar=folders.number("" if devkit else "/".join(parts[:-1])))
    if folders.splits and not devkit:
        raise splits.error_in_tar(tar.file, folders.all_splits())
    for path in sorted(folders.empty - folders.used):
        yield RejectRow(f"{path}/", path.rpartition("/")[2], 0, "empty_class", EMPTY_CLASS)


class Folders:
    """The folders of a tar's members, each looked at once."""

    def __init__(self) -> None:
        self.splits: list[splits.Split] = []
        self.empty: set[str] = set()  # directories, whether or not something lies in them
        self.used: set[str] = {""}  # folders in which files lie, at any depth
        self._worded: set[str] = set()  # paths whose last part has a split's word
        self._parts: dict[str, list[str]] = {}
        self._numbers: dict[str, int] = {}

    def of(self, folder: str) -> list[str]:
        """The parts of a file's folder."""
        if folder not in self._parts:
            parts = self._parts[folder] = _parts(folder)
            self.used |= {"/".join(parts[: depth + 1]) for depth in range(len(parts))}
            worded = {"/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if splits.has_word(part)}
            if not worded <= self._worded:
                self._worded |= worded
                self.splits = self.all_splits()
        return self._parts[folder]

    def all_splits(self) -> list[splits.Split]:
        return splits.in_paths(self._parts)

    def number(self, parent: str) -> int:
        """Of a folder of class folders, counted in the tar's order."""
        return self._numbers.setdefault(parent, len(self._numbers))


def _parts(folder: str) -> list[str]:
    return [part for part in folder.split("/") if part not in ("", ".")]
