"""Models on the Hugging Face Hub: ``hf://OWNER/NAME[@REVISION]``, and timm's ``hf-hub:OWNER/NAME[@REVISION]``.

The files are in huggingface_hub's own cache (HF_HOME), which timm and transformers share, under the commit that the
revision meant when they were downloaded. One process per node downloads, the others wait. Only safetensors are
accepted: a pickled file (.bin, .pth) can run code when it is loaded.
"""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import hub
from pipeline.core.errors import UserError
from pipeline.core.files import hashed, read_json, write_json, write_text
from pipeline.core.locks import locked
from pipeline.core.progress import Bar
from pipeline.core.units import size as in_words
from pipeline.distributed.ranks import ranks_from_environment

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

PREFIXES = ("hf://", "hf:/", "hf-hub:")  # the second is what pathlib makes of the first
_ADDRESS = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w.][\w./-]*))?")
_SETTINGS = "config.json"
_CONFIGS = (_SETTINGS, "preprocessor_config.json", "model.json")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLED = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
_TOGETHER = 60.0  # seconds within which the ranks of a job start


@dataclass(frozen=True)
class Address:
    repository: str  # OWNER/NAME
    revision: str  # branch, tag or commit

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Downloaded:
    folder: Path  # with config.json and the weights
    name: str  # hf://OWNER/NAME@COMMIT
    sha256: str  # of model.safetensors, as the Hub states it, checked against the file; "" if it is in several parts


@dataclass(frozen=True)
class Listed:
    """A file of a repository."""

    path: str
    bytes: int
    sha256: str  # "" for a small file, which git keeps


def parse(text: str | Path, field: str) -> Address | None:
    """The address in ``text``, the value of ``field``; None for a path. Raises UserError for a wrong address."""
    text = str(text)
    prefix = next((prefix for prefix in PREFIXES if text.startswith(prefix)), None)
    if prefix is None:
        return None
    found = _ADDRESS.fullmatch(text.removeprefix(prefix))
    if found is None:
        shown = f"hf://{text.removeprefix(prefix)}" if prefix == "hf:/" else text
        raise UserError(
            f"{field} {shown!r} does not name a model on the Hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    return Address(found["repository"], found["revision"] or "main")


def resolved(path: Path) -> Path:
    """MODEL, or the local folder of the model that it names on the Hub, downloaded if necessary. Raises UserError."""
    address = parse(path, "MODEL")
    return path if address is None else fetch(address, "MODEL").folder


def fetch(address: Address, field: str) -> Downloaded:
    """Download a model, or find it in the cache. Raises UserError: no such model, no access, no network, a bad file."""
    from pipeline.dataset.index import cache_folder  # pyarrow

    cache = cache_folder() / "hub"
    cache.mkdir(parents=True, exist_ok=True)
    name = f"{address.repository}@{address.revision}".replace("/", "--")
    with locked(cache / f"{name}.lock"):
        record = cache / f"{name}.json"
        if _is_of_this_start(record) and (found := _recorded(address, read_json(record))) is not None:
            return found
        client = hub.client()
        what = f"{field} {str(address)!r}"
        try:
            commit, listed = hub.ask(lambda: _listing(client, address), str(address))
        except Exception as error:
            if not hub.unreachable(error):
                with hub.one_line(what, address.repository):
                    raise
            return _in_cache(address, what, error, record)
        files = choose(listed, what, hub.page(address.repository))
        checked = read_json(record).get("checked", {}) if record.is_file() else {}
        folder = _download(address, commit, files, checked, what)
        stated = {file.path: file.sha256 for file in files}
        write_json(record, {"commit": commit, "files": [file.path for file in files], "checked": checked | stated})
        return Downloaded(folder, f"hf://{address.repository}@{commit}", stated.get(_WEIGHTS, ""))


def _listing(client: "HfApi", address: Address) -> tuple[str, list[Listed]]:
    """The commit that an address means now, and its files."""
    from huggingface_hub.hf_api import RepoFile

    commit = client.model_info(address.repository, revision=address.revision).sha or ""
    tree = client.list_repo_tree(address.repository, revision=commit)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    return commit, [Listed(file.path, file.size, file.lfs.sha256 if file.lfs else "") for file in files]


def choose(listed: Sequence[Listed], what: str, page: str) -> list[Listed]:
    """The files to download. Raises UserError if the repository holds no model in safetensors."""
    by_name = {file.path: file for file in listed}
    configs = [by_name[name] for name in _CONFIGS if name in by_name]
    if _WEIGHTS in by_name:
        weights = [by_name[_WEIGHTS]]
    elif _INDEX in by_name:
        weights = [by_name[_INDEX], *(file for file in listed if _SHARD.fullmatch(file.path))]
    elif pickled := [file.path for file in listed if file.path.endswith(_PICKLED)]:
        raise UserError(
            f"{what} has its weights in {pickled[0]}, a pickle, which can run code when it is loaded: choose a model "
            f"with {_WEIGHTS} (see {page}/tree/main), or ask its author to convert it"
        )
    else:
        raise UserError(f"{what} has no {_WEIGHTS}: choose a ViT of timm or transformers (see {page}/tree/main)")
    if not {_SETTINGS, "model.json"} & by_name.keys():
        raise UserError(f"{what} has no {_SETTINGS}: choose a ViT of timm or transformers (see {page}/tree/main)")
    return configs + weights


def _download(address: Address, commit: str, files: Sequence[Listed], checked: Mapping[str, str], what: str) -> Path:
    """The snapshot's folder in huggingface_hub's cache, with files whose hashes are those that the Hub states."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = {
        file.path: str(found)
        for file in files
        if isinstance(found := try_to_load_from_cache(address.repository, file.path, revision=commit), str)
    }
    missing = [file for file in files if file.path not in cached]
    if missing:
        parts = ", ".join(f"{file.path} ({in_words(file.bytes)})" for file in missing)
        logger.info("downloading %s at commit %s from %s: %s", address, commit[:12], hub.endpoint(), parts)
        with (
            hub.one_line(what, address.repository),
            hub.plain_http(),
            Bar(f"downloading {address.repository}", sum(file.bytes for file in missing), "bytes") as bar,
        ):
            shown = _shown_by(bar)
            for file in missing:
                fetched = partial(hf_hub_download, revision=commit, library_name=hub.LIBRARY, tqdm_class=shown)
                try:
                    cached[file.path] = hub.ask(partial(fetched, address.repository, file.path), str(address))
                except OSError as error:
                    if "Consistency check" not in str(error):  # huggingface_hub's words: the answer was too short
                        raise
                    raise UserError(f"{what}: {file.path} arrived incomplete: run the same command again") from error
    for file in files:
        path = Path(cached[file.path])
        if not file.sha256 or (checked.get(file.path) == file.sha256 and file not in missing):
            continue
        if (found := hashed(path)) != file.sha256:
            path.resolve().unlink()  # the blob
            path.unlink(missing_ok=True)  # the link to it
            raise UserError(
                f"{what}: {file.path} has sha256 {found}, the Hub states {file.sha256}: the file was removed, run the "
                "same command again"
            )
    if address.revision != commit:  # so that the branch is found without a network, by timm and transformers, too
        ref = Path(constants.HF_HUB_CACHE) / _folder(address) / "refs" / address.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_text(ref, commit)
    return Path(cached[files[-1].path]).parent


def _folder(address: Address) -> str:
    """The name of a model's folder in huggingface_hub's cache: blobs/, snapshots/COMMIT/ with links, refs/REVISION."""
    return f"models--{address.repository.replace('/', '--')}"


def _shown_by(bar: Bar) -> Any:
    """A replacement for huggingface_hub's tqdm class, which advances ``bar`` by the bytes that reach the disk."""

    class Shown:
        def __init__(self, **_: object) -> None:
            pass

        def __enter__(self) -> "Shown":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            bar.advance(int(count or 0))

        def close(self, *_: object, **__: object) -> None:
            pass

        update_transfer = set_postfix_str = set_transfer_postfix_str = refresh = close

    return Shown


def _is_of_this_start(record: Path) -> bool:
    """Whether another rank of this job has just asked the Hub on this node; its answer then serves this rank, too."""
    several = ranks_from_environment(os.environ).world_size > 1
    return several and record.is_file() and time.time() - record.stat().st_mtime < _TOGETHER


def _recorded(address: Address, record: Mapping[str, Any]) -> Downloaded | None:
    """The download that a record describes, if its files are still there."""
    from huggingface_hub import try_to_load_from_cache

    commit, names = str(record["commit"]), list(record["files"])
    paths = [try_to_load_from_cache(address.repository, name, revision=commit) for name in names]
    if not names or not all(isinstance(path, str) for path in paths):
        return None
    folder = Path(str(paths[-1])).parent
    return Downloaded(folder, f"hf://{address.repository}@{commit}", record["checked"].get(_WEIGHTS, ""))


def _in_cache(address: Address, what: str, error: Exception, record: Path) -> Downloaded:
    """The model of an earlier download, or of ``hf download``, while there is no network."""
    from huggingface_hub import constants, try_to_load_from_cache

    known = read_json(record) if record.is_file() else {}
    names = (_WEIGHTS, _INDEX)
    weights = [try_to_load_from_cache(address.repository, name, revision=address.revision) for name in names]
    found = next((Path(path) for path in weights if isinstance(path, str)), None)
    if found is None:
        revision = "" if address.revision == "main" else f" --revision {address.revision}"
        raise UserError(
            f"{what} is not in the cache, and {hub.reason(error)}: on a machine with network run 'hf download "
            f"{address.repository}"
            f"{revision} {' '.join(_CONFIGS[:2])} {_WEIGHTS}', and copy its folder {_folder(address)} into "
            f"{constants.HF_HUB_CACHE}"
        ) from error
    commit = found.parent.name
    logger.info("%s: no network; using commit %s from the cache", address, commit[:12])
    sha256 = known.get("checked", {}).get(_WEIGHTS) or hashed(found) if found.name == _WEIGHTS else ""
    return Downloaded(found.parent, f"hf://{address.repository}@{commit}", sha256)
