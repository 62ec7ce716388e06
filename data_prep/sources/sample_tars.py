"""WebDataset tars: adjacent members with the same key form a sample, and one of them holds its class."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from data_prep.sources.names import is_image, is_system_path
from data_prep.sources.rows import OTHER_FILE, ImageRow, RejectRow, Row
from data_prep.sources.tar_headers import Member, Read, scan
from data_prep.sources.tar_images import Tar, is_class_tar, problem, stem_of, system_file
from pipeline.core.errors import UserError, printable

NO_CLASS = "-1"  # the label of an image without a class, such as timm's label_12k of those outside the 12k classes
UNLABELLED, UNLABELLED_DETAIL = "unlabelled", "the label -1 marks an image without a class"  # reason of a reject
LARGEST_LABEL = 1 << 20  # bytes of a member that holds a label; img2dataset's .json files have a few thousand
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)


class Label(NamedTuple):
    """The member that holds a sample's class."""

    ending: str  # in small letters: cls, txt, json, output.txt, ...
    key: str = ""  # of the JSON object; "a.b" is b inside a

    def is_of(self, ending: str) -> bool:
        """Whether a member's ending is this one, or ends with it: ``target.cls``."""
        return ending == self.ending or ending.endswith("." + self.ending)

    def read(self, content: bytes) -> str | None:
        """The class in a member's bytes; ``None`` if there is none."""
        if not self.key:
            return content[:LARGEST_LABEL].decode("utf-8", "replace").strip() or None
        try:
            value = json.loads(content)
            for part in self.key.split("."):
                value = value[part]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return None
        return str(value).strip() or None if isinstance(value, (str, int, float)) else None


CLS = Label("cls")


def read_label(text: str) -> Label:
    """--label: ``""`` (cls), an ending such as ``txt``, or ``json:KEY``. Raises UserError."""
    ending, colon, key = text.partition(":")
    ending = (ending or "cls").lower().removeprefix(".")
    if (ending.rpartition(".")[2] == "json") != bool(key) or (colon and not key) or "/" in ending or is_image(ending):
        raise UserError(f"--label {text!r} must be a member's ending, such as cls or txt, or json:KEY")
    return Label(ending, key)


def is_number(text: str) -> bool:
    """Whether a label is written as a number, be it negative or with a fraction."""
    return _NUMBER.fullmatch(text) is not None


@dataclass
class Peek:
    """What the first members of some tars look like."""

    samples: bool = False  # whether an image has another member with its stem, or there is a .cls member
    labelled: bool = False  # whether there is a .cls member
    endings: set[str] = field(default_factory=set)  # of members of samples
    keys: set[str] = field(default_factory=set)  # of a .json member


def peek(seen: Peek, members: Iterable[Member], read: Read, most: int, folders: bool) -> None:
    """Add to ``seen`` what the first ``most`` members say; ``folders``: keys may have folders before them.

    Raises DamagedTarError.
    """
    before = ""  # the key of the member before
    beside: set[str] = set()  # endings of its members
    for member in islice(members, most):
        if is_class_tar(member):  # looking behind several of these would read gigabytes of a stream
            return
        if member.kind != "file" or is_system_path(member.name):
            continue
        key, ending = stem_of(member.name)
        ending = ending.lower()
        if CLS.is_of(ending):
            seen.samples = seen.labelled = True
            return
        beside = {*(beside if key == before else ()), printable(ending)}
        if len({is_image(other) for other in beside}) == 2 and (folders or "/" not in key):
            seen.samples = True
            seen.endings |= beside
        if ending == "json" and not seen.keys and member.size <= LARGEST_LABEL:
            seen.keys = _keys(read(member.offset, member.size))
        before = key


def _keys(content: bytes) -> set[str]:
    """The keys of a JSON object that may hold a class."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return set()
    return {key for key, value in found.items() if isinstance(value, (str, int))} if isinstance(found, dict) else set()


def no_label(given: str, seen: Peek) -> str:
    """The error for samples without .cls members: one line that names the members that may hold the class."""
    endings = ", ".join(f".{ending}" for ending in sorted(seen.endings))
    ways = [f"--label {ending}" for ending in sorted(seen.endings) if not is_image(ending) and ending[-4:] != "json"]
    ways += ["--label json:KEY"] if any(ending.endswith("json") for ending in seen.endings) else []
    keys = f" (its keys: {', '.join(sorted(seen.keys)[:12])})" if seen.keys else ""
    return printable(
        f"INPUT {given!r} holds WebDataset samples of {endings} members, none of them .cls: name the one with the "
        f"class with {' or '.join(ways)}{keys}, or give --source tars if each tar is one class"
    )


def all_unlabelled(what: str, count: int) -> UserError:
    """The error for tars of which no image has a class. ``what``: the argument and its value."""
    return UserError(
        f"{what}: all {count:,} labelled images have label -1, which marks images without a class: name another member "
        "with --label"
    )


def samples(
    tar: Tar, end: int | None, label: Label, wnid_of: Callable[[str], str], name_of: Callable[[str], str]
) -> Iterator[Row]:
    """The images of a WebDataset tar.

    ``wnid_of`` gives the class for a label's text, ``name_of`` the image's name (without ending) for a key. Raises
    UserError if the members of a sample are never adjacent.
    """
    key: str | None = None
    image: tuple[ImageRow, str] | None = None
    found: tuple[str, str | None] | None = None  # the label member's ending, and its text
    file = printable(tar.file)
    whole = images = labels = 0  # samples with both, and with one of them alone

    def left_out(size: int, reason: str, detail: str) -> RejectRow:
        return RejectRow(f"{file}/{key}", "", size, reason, detail)

    def sample() -> Iterator[Row]:
        nonlocal whole, images, labels
        text = found[1] if found else None
        if image and text == NO_CLASS:
            whole += 1
            yield left_out(image[0].size, UNLABELLED, UNLABELLED_DETAIL)
        elif image and text:
            whole += 1
            wnid = wnid_of(text)
            row, ending = image
            yield row._replace(wnid=wnid, name=f"{name_of(key or '').removeprefix(wnid + '/')}.{ending}")
        elif image:
            images += 1
            what = f"no {label.key!r} of a class in its .{found[0]}" if found else f"no .{label.ending} member"
            yield left_out(image[0].size, "no_class", f"the sample has {what}")
        elif found:
            labels += 1
            yield left_out(0, OTHER_FILE, "the sample has no member with an image extension")

    for member in scan(tar.read, 0, end, whole=True):
        if member.kind == "directory":
            continue
        if is_system_path(member.name):
            yield system_file(member, f"{file}/")
            continue
        own, ending = stem_of(printable(member.name))
        if own != key:
            yield from sample()
            key, image, found = own, None, None
        small = ending.lower()
        if label.is_of(small) and member.kind == "file":
            if found is None or small == label.ending:
                size = min(member.size, LARGEST_LABEL if label.ending != "cls" else 256)
                found = small, label.read(tar.read(member.offset, size))
        elif is_image(ending):
            reject = problem(member, "", f"{file}/")
            if reject:
                yield reject
            elif image is None or ("." in image[1] and "." not in ending):  # 1.jpg rather than 1.depth.png
                if image:
                    yield left_out(image[0].size, OTHER_FILE, f"the sample's image is .{ending}, not .{image[1]}")
                image = tar.image("", "", member), ending
            else:
                yield left_out(member.size, OTHER_FILE, f"the sample's image is .{image[1]}, not .{ending}")
    yield from sample()
    if images and labels and not whole:
        raise UserError(
            f"INPUT {tar.file!r} has images and .{label.ending} members that are not adjacent, as the members of a "
            "sample must be: rewrite the tar with its members sorted by name (tar --sort=name)"
        )
