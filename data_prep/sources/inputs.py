"""Find out what INPUT is: its form, and its tars or its folder, without unpacking anything.

parts.py cuts the source into parts, and read_parts.py yields the rows of each.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import braceexpand

from data_prep.sources import names, sample_tars, splits, streams
from data_prep.sources.devkit import Devkit
from data_prep.sources.folders import class_folders
from data_prep.sources.source import Form, Source, opened_any
from data_prep.sources.tar_headers import BLOCK, DamagedTarError, looks_like_tar, scan
from pipeline.core.errors import UserError
from pipeline.core.files import is_remote
from pipeline.dataset import format as dataset_format
from pipeline.dataset import hub_dataset

PEEKED_TARS = 16  # in which members are looked at, to tell WebDataset tars from class tars
PEEKED_MEMBERS, PEEKED_MEMBERS_MORE = 10_000, 128  # of the first tar, and of the others or of a stream
OWN_FILES = frozenset({"dataset.json", "index.parquet", "classes.parquet", "rejects.parquet", "_info.json"})


def find(text: str, form: str, devkit: Devkit | None, class_list: Sequence[str] | None, label: str = "") -> Source:
    """What INPUT ``text`` is, of the given form unless that is "auto". ``label`` is --label's. Raises UserError."""
    remote = is_remote(text)
    url = urlsplit(text) if "://" in text and not text.startswith("pipe:") else None
    if url and (url.username or url.password):
        raise UserError(
            f"INPUT '{url.scheme}://...{url.path}' is a URL with a login, which would be stored in the plan and "
            "the list of rejects: put the login into ~/.netrc or, for s3, into the AWS variables"
        )
    text = text if remote else str(Path(text).absolute())  # a run may be resumed from another folder
    path = Path(text)
    on_hub = hub_dataset.is_hub(text)
    if on_hub:
        locations = _on_hub(text)
    elif remote or ("{" in text and not path.exists()):
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
        folders = bool(class_folders(path))
        if locations and folders and form == "auto":
            raise UserError(
                f"INPUT {text!r} contains both tars and folders: choose with --source folder or --source tars"
            )
        if form == "folder" or not locations:
            if label:
                raise UserError(f"--label {label} has no effect on a folder of images: leave it out, or give tars")
            return Source("folder", (text,), True, devkit, tuple(class_list or ()))
    elif not path.is_file():
        raise UserError(f"INPUT {text!r} is neither a file nor a folder: give 'pipe:COMMAND' for a command's output")
    else:
        locations = (text,)
    if form == "tar" and len(locations) > 1:
        raise UserError(f"INPUT {text!r} is {len(locations)} tars, but --source tar takes one: give --source tars")
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
        peeked = (on_hub or not remote) and _holds_samples(text, locations, several)
        form = "webdataset" if peeked or (remote and not on_hub and several) else "tars" if several else "tar"
    if label and form != "webdataset":
        raise UserError(f"--label {label} is for WebDataset tars, but --source {form} takes them from names: give one")
    if form == "webdataset":
        own = _classes_beside(locations[0])
        plain = all(wnid.isdecimal() and int(wnid) == number for number, wnid in enumerate(own))  # or there are none
        made = not remote and is_ours(Path(locations[0]).parent)
        return Source(
            "webdataset",
            locations,
            seekable,
            devkit,
            class_list=tuple((class_list or own) if plain else own),
            unordered=plain and not made,
            ours=made,
            label=sample_tars.read_label(label),
            guessed=guessed,
            beside=() if made else beside,
        )
    if form == "tars" and not devkit:
        _check_class_tars(text, locations)
    kind: Form = "tar" if form == "tar" else "tars"
    return Source(kind, locations, seekable, devkit, guessed=guessed, beside=beside)


def _on_hub(url: str) -> tuple[str, ...]:
    """The tars of a folder on the Hub, or those that the URL names with braces, at a commit. Raises UserError."""
    place = hub_dataset.parse(hub_dataset.pinned(url))
    whole = replace(place, path="").url
    every = hub_dataset.files(whole)
    inside = f"{place.path}/" if place.path else ""
    found = [name for name in every if name.startswith(inside) and "/" not in name.removeprefix(inside)]
    found = sorted(name for name in found if names.is_tar(name))
    if not found:
        found = list(braceexpand.braceexpand(place.path, escape=False))
        if missing := [name for name in found if name not in every]:
            raise UserError(f"INPUT {url!r}: {missing[0]!r} is neither a file nor a folder of tars on the Hub")
    return tuple(f"{whole}/{name}" for name in found)


def _is_tar(path: Path) -> bool:
    return names.is_tar(path.name) and not names.is_system(path.name) and not path.is_dir()


def _beside(folder: Path, entries: Sequence[Path], locations: Sequence[str]) -> tuple[str, ...]:
    """The other files and folders beside the tars of a folder. Raises UserError for tars that can't be read."""
    rest = [entry for entry in entries if str(entry) not in locations and entry.name not in OWN_FILES]
    for entry in rest:
        if names.is_packed_tar(entry.name) and not names.is_system(entry.name) and not entry.is_dir():
            raise UserError(
                f"INPUT {str(folder)!r} holds {entry.name!r} among its tars, with a compression that is not supported: "
                "unpack it to a .tar, or move it out of the folder"
            )
    return tuple(str(entry) for entry in rest)


def _check_class_tars(text: str, locations: Sequence[str]) -> None:
    """Raise UserError if the tars are splits, or if two tars of one folder belong to the same class."""
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
                f"INPUT {text!r} holds {Path(other).name!r} and {Path(path).name!r}, both of class {stem!r}: remove "
                "one of them (an interrupted unpacking leaves both)"
            )


def _classes_beside(location: str) -> Sequence[str]:
    folder = Path(location).parent
    if is_remote(location) or not (folder / "classes.parquet").is_file():
        return ()
    wnids: list[str] = dataset_format.read_classes(folder)["wnid"].to_pylist()
    return wnids


def is_ours(folder: Path) -> bool:
    """Whether vit shard has made the dataset in ``folder``; False if its dataset.json is damaged."""
    try:
        return (folder / "dataset.json").is_file() and "made_by" not in dataset_format.read_info(folder).options
    except UserError:
        return False


def _check_tar(location: str, seekable: bool) -> None:
    start = streams.open_stream(location).read(0, BLOCK)
    if not start:
        raise UserError(f"INPUT {location!r} is empty (0 bytes): download it again")
    if start.startswith(b"PK\x03\x04"):
        raise UserError(f"INPUT {location!r} is a zip, which is not read: unpack it, and name the folder of its images")
    if not looks_like_tar(start):
        kind = "tar" if seekable else "gzipped tar"
        raise UserError(
            f"INPUT {location!r} is not a {kind} or a folder (it starts with {start[:8].hex(' ')}): name a release's "
            "tar, a folder of tars, or a folder with one folder of images per class"
        )


def _holds_samples(text: str, locations: Sequence[str], several: bool) -> bool:
    """Whether the tars are WebDataset tars, by the first members of some. Raises UserError if they have no labels."""
    step = -(-len(locations) // PEEKED_TARS)
    seen = sample_tars.Peek()
    for place, location in enumerate(dict.fromkeys([*locations[::step], locations[-1]])):
        with opened_any(location) as (tar, size):
            most = PEEKED_MEMBERS if size is not None and not place else PEEKED_MEMBERS_MORE
            try:
                sample_tars.peek(seen, scan(tar.read, 0, size, tar.fd), tar.read, most, several)
            except DamagedTarError:
                continue
    if seen.samples and not seen.labelled:
        raise UserError(sample_tars.no_label(text, seen))
    return seen.samples
