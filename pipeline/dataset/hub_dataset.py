"""Datasets on the Hugging Face Hub: ``hf://datasets/OWNER/NAME[@REVISION][/FOLDER]``.

Only names, commits and file lists are here; hub_reader.py reads the files. A branch or tag is resolved to its commit at
the start, and everything else is asked of that commit, so a push during a run changes nothing. All processes that share
the cache folder ask once: the answers are kept in ``VIT_CACHE/hub``, the file list for good (a commit never changes),
the commit of a branch for FRESH seconds.

pipeline.core.hub has the account, the mirror and the errors. The token goes to the endpoint's host alone, and into no
file, log or message.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote

import xxhash

from pipeline.core import hub, hub_pace
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.locks import locked
from pipeline.core.retry import GoneError, Patience
from pipeline.dataset.index import cache_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Item = TypeVar("Item")
FRESH = 60.0  # seconds for which the commit of a branch isn't asked for again
_URL = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Place:
    """What an hf:// URL names."""

    repo: str  # OWNER/NAME
    revision: str  # branch, tag or commit
    path: str  # of a folder or file in it, without slashes around it; "" for the whole

    @property
    def url(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://datasets/{self.repo}{revision}" + (f"/{self.path}" if self.path else "")

    @property
    def is_pinned(self) -> bool:
        return _COMMIT.fullmatch(self.revision) is not None


def is_hub(source: str) -> bool:
    return source.startswith("hf://")


def parse(url: str) -> Place:
    """The parts of an hf:// URL of a dataset. Raises UserError."""
    found = _URL.fullmatch(url)
    if not found or ".." in (found["path"] or "").split("/"):
        raise UserError(
            f"{url!r} does not name a dataset on the Hub: write hf://datasets/OWNER/NAME[@REVISION][/FOLDER]"
        )
    return Place(found["repo"], unquote(found["revision"] or "main"), (found["path"] or "").strip("/"))


def pinned(url: str) -> str:
    """The URL with the commit that its branch or tag points to now. Raises UserError."""
    place = parse(url)
    if place.is_pinned:
        return place.url
    folder = _folder(place)
    known = folder / f"{quote(place.revision, safe='')}.json"
    with locked(folder / ".lock"):
        if not known.is_file() or time.time() - known.stat().st_mtime > FRESH:
            info = ask(place, lambda api: api.dataset_info(place.repo, revision=place.revision))
            write_json(known, {"commit": info.sha})
        commit = str(read_json(known, "delete it")["commit"])
    return replace(place, revision=commit).url


@lru_cache(8)
def files(url: str) -> Mapping[str, int]:
    """Size in bytes of each file in the folder of a pinned URL and below, by its path there. Raises UserError."""
    place = parse(url)
    folder = _folder(place)
    known = folder / f"{place.revision}.files.json"
    with locked(folder / ".lock"):
        if not known.is_file():
            write_json(known, ask(place, lambda api: _listed(api, place)))
        every = read_json(known, "delete it")
    inside = f"{place.path}/" if place.path else ""
    return {path.removeprefix(inside): size for path, size in every.items() if path.startswith(inside)}


def size_of(url: str) -> int:
    """Bytes of a file at a pinned URL, from the list of files. Raises GoneError if there is no such file."""
    place = parse(url)
    size = files(replace(place, path="").url).get(place.path)
    if size is None:
        raise GoneError(f"{url} is missing: look at the files on {hub.page(place.repo, 'dataset')}")
    return size


def index_folder(url: str) -> Path:
    """Where ``vit index`` keeps the index of a pinned URL's tars."""
    place = parse(url)
    return _folder(place) / place.revision / (quote(place.path, safe="") or "index")


def indexed(url: str) -> list[str]:
    """The pinned URLs of other commits of the same folder that have an index here."""
    place, name = parse(url), index_folder(url).name
    found = sorted(path.parents[1].name for path in _folder(place).glob(f"*/{name}/dataset.json"))
    return [replace(place, revision=commit).url for commit in found]


def ask(place: Place, question: Callable[["HfApi"], Item], patience: Patience = hub_pace.QUESTION) -> Item:
    """What a method of huggingface_hub's HfApi answers. Raises UserError: GoneError if the Hub refuses."""
    api = hub.client()
    try:
        return hub_pace.ask(lambda: question(api), place.url, patience, hub_pace.is_refusal)
    except hub_pace.GaveUpError as given_up:
        raise UserError(f"{given_up}: {hub.remedy(given_up.error, place.repo, 'dataset')}") from given_up.error
    except Exception as error:
        refuse(error, place)
        raise


def refuse(error: Exception, place: Place) -> None:
    """Raise GoneError, with the remedy, for an error that a retry won't change."""
    if hub_pace.is_refusal(error):
        raise GoneError(f"{place.url}: {hub.remedy(error, place.repo, 'dataset')}") from None


def _listed(api: "HfApi", place: Place) -> dict[str, int]:
    from huggingface_hub.hf_api import RepoFolder

    tree = api.list_repo_tree(place.repo, recursive=True, revision=place.revision, repo_type="dataset")
    return {item.path: item.size for item in tree if not isinstance(item, RepoFolder)}


def _folder(place: Place) -> Path:
    """The cache of the endpoint's answers about a dataset. Raises UserError."""
    mark = xxhash.xxh3_64_hexdigest(hub.endpoint().encode())[:8]
    folder = cache_folder() / "hub" / f"{place.repo.replace('/', '--')}-{mark}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            return folder
    except OSError as error:
        raise UserError(f"VIT_CACHE {str(cache_folder())!r} can't be written ({error}): give another folder") from error
