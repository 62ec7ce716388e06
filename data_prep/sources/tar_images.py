"""From tar members to images: what is an image of which class, and what is left out for which reason."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_prep.images.prepare import LARGEST_FILE
from data_prep.sources.devkit import Devkit
from data_prep.sources.rows import ImageRow, RejectRow, Row
from data_prep.sources.tar_headers import Member, Read, scan
from pipeline.core.errors import UserError, printable

ENDINGS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp"})
SPLITS = ("train", "val", "test", "validation")  # folders of these names aren't classes


class Tar(NamedTuple):
    """A tar to walk: how to read it, and what its rows say of where they are."""

    read: Read
    file: str
    streaming: bool
    fd: int | None = None  # of the file, where it isn't a stream
    number: int = 0  # among a source's tars

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
    elif name.rpartition(".")[2].lower() not in ENDINGS:
        reason, detail = "other_file", "the ending is no image's"
    elif member.size > LARGEST_FILE:
        reason, detail = "too_large", f"{member.size:,} bytes, more than {LARGEST_FILE:,}"
    else:
        return None
    return RejectRow(printable(where + name), wnid, member.size, reason, detail)


def is_ignored(member: Member) -> bool:
    """Directories, hidden files such as macOS's ``._name``, and what lies in hidden folders: not meant as images."""
    name = member.name
    hidden = (name[:1] == "." or "/." in name) and any(
        part.startswith(".") and part not in (".", "..") for part in name.split("/")
    )
    return hidden or member.kind == "directory"


def is_class_tar(member: Member) -> bool:
    return member.kind == "file" and member.name.endswith(".tar") and not is_ignored(member)


def class_of_tar(name: str) -> str:
    """``winter21_whole/n01440764.tar`` -> ``n01440764``."""
    return printable(name.rpartition("/")[2].removesuffix(".gz").removesuffix(".tar"))


def split_of(name: str) -> str:
    """``imagenet1k-validation-03.tar`` -> ``val``."""
    words = set(re.split("[^a-z]+", name.lower()))
    return "val" if words & {"val", "valid", "validation"} else "test" if "test" in words else "train"


def class_tar(tar: Tar, start: int, end: int | None, wnid: str, *, whole: bool = False) -> Iterator[Row]:
    """The images of one class's tar; ``whole`` where it is a file by itself."""
    for member in scan(tar.read, start, end, tar.fd, whole=whole):
        name = member.name
        if (  # the usual member: there are millions
            member.kind == "file"
            and name.rpartition(".")[2].lower() in ENDINGS
            and "/" not in name
            and name.isascii()
            and name[0] != "."
            and member.size <= LARGEST_FILE
        ):
            yield tar.image(wnid, name, member)
            continue
        if is_ignored(member):
            continue
        reject = problem(member, wnid, f"{wnid}.tar/")
        if reject:
            yield reject
            continue
        parts = [part for part in printable(member.name).split("/") if part not in ("", ".")]
        inside = parts[1:] if len(parts) > 1 and parts[0] == wnid else parts
        yield tar.image(wnid, "/".join(inside), member)


def release_tar(tar: Tar, end: int | None, devkit: Devkit | None, nested: bool) -> Iterator[Row]:
    """A release's tar: ``<class>/<image>`` members, validation images (with ``devkit``), class tars if ``nested``.

    Class folders lie as deep as the first one: what lies deeper or higher is left out, for want of a class.
    """
    depth = 0
    splits: set[str] = set()
    for member in scan(tar.read, 0, end, whole=True):
        if is_ignored(member):
            continue
        if is_class_tar(member):
            if nested:
                yield from class_tar(tar, member.offset, member.offset + member.size, class_of_tar(member.name))
            continue
        folder, _, name = printable(member.name).rpartition("/")
        folders = [part for part in folder.split("/") if part not in ("", ".")]
        wnid = (devkit.wnid_of(name) if devkit else None) or (folders[-1] if folders else "")
        splits.update(part for part in folders[-2:-1] if part in SPLITS and not devkit)
        if len(splits) > 1:
            raise UserError(
                f"INPUT {tar.file!r} holds the splits {', '.join(sorted(splits))}, not classes: unpack it, and shard "
                "one after another, each with its --split"
            )
        reject = problem(member, wnid)
        if reject:
            yield reject
        elif not wnid:
            raise UserError(
                f"INPUT {tar.file!r} has images without a class, such as {name!r}: images must lie in <wnid>.tar "
                "members or in class folders; for ILSVRC2012's validation tar give --devkit, for samples with .cls "
                "members --source webdataset, for the gzipped tar of one class unpack it"
            )
        elif devkit and not devkit.wnid_of(name):
            yield RejectRow(printable(member.name), "", member.size, "no_class", "not a name of the --devkit")
        elif not devkit and len(folders) != (depth := depth or len(folders)):
            detail = f"its folder is {len(folders)} deep, the first image's {depth}: which one is its class?"
            yield RejectRow(printable(member.name), "", member.size, "no_class", detail)
        else:
            yield tar.image(wnid, name, member)


def samples(tar: Tar, end: int | None, wnid_of: Callable[[str], str], name_of: Callable[[str], str]) -> Iterator[Row]:
    """A WebDataset tar: members of one key, side by side, are a sample.

    ``wnid_of`` names the class in ``.cls``, ``name_of`` the image of a key, without its ending.
    """
    key: str | None = None
    image: tuple[ImageRow, str] | None = None
    label: str | None = None
    file = printable(tar.file)

    def left_out(size: int, reason: str, detail: str) -> RejectRow:
        return RejectRow(f"{file}/{key}", "", size, reason, detail)

    def sample() -> Iterator[Row]:
        if image and label:
            wnid = wnid_of(label)
            row, ending = image
            yield row._replace(wnid=wnid, name=f"{name_of(key or '').removeprefix(wnid + '/')}.{ending}")
        elif image:
            yield left_out(image[0].size, "no_class", "the sample has no .cls member")
        elif label:
            yield left_out(0, "other_file", "the sample has no member with an image's ending")

    for member in scan(tar.read, 0, end, whole=True):
        if is_ignored(member):
            continue
        folder, slash, name = printable(member.name).rpartition("/")
        stem, _, ending = name.partition(".")
        own = f"{folder}{slash}{stem}"
        if own != key:
            yield from sample()
            key, image, label = own, None, None
        if ending == "cls" and member.kind == "file":
            label = tar.read(member.offset, min(member.size, 256)).decode("utf-8", "replace").strip()
        elif ending.rpartition(".")[2].lower() in ENDINGS:
            reject = problem(member, "", f"{file}/")
            if reject:
                yield reject
            elif image is None or ("." in image[1] and "." not in ending):  # 1.jpg rather than 1.depth.png
                if image:
                    yield left_out(image[0].size, "other_file", f"the sample's image is .{ending}, not .{image[1]}")
                image = tar.image("", "", member), ending
            else:
                yield left_out(member.size, "other_file", f"the sample's image is .{image[1]}, not .{ending}")
    yield from sample()
