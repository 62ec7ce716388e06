"""A dataset behind a URL: its small files are copied to the node's cache folder; its shards are checked to exist."""

import contextlib
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import xxhash

from pipeline.core.errors import UserError
from pipeline.core.files import is_remote, put_in_place, temporary
from pipeline.core.locks import Lock, locked
from pipeline.core.retry import GoneError, Patience
from pipeline.dataset import format as dataset_format
from pipeline.dataset import hub_dataset
from pipeline.dataset.format import DatasetInfo, ShardInfo
from pipeline.dataset.index import cache_folder
from pipeline.dataset.urls import check_source, join, read_blocks, size_of

Item = TypeVar("Item")
CHECKERS = 16  # requests at a time when the shards are looked for
_TABLES = ("index.parquet", "classes.parquet")  # that a run reads
CHECKED = 600.0  # seconds for which processes of this node don't check the shards again


def open_folder(source: str, cache: Path, patience: Patience | None = None) -> Path:
    """The folder itself, or for a URL a folder under ``cache`` with copies of the dataset's small files.

    One process per node fetches them, the others wait. Raises UserError if the source is not a finished dataset.
    """
    if not is_remote(source):
        return Path(source)
    check_source(source)
    if hub_dataset.is_hub(source):
        source = hub_dataset.pinned(source)
        if (hub_dataset.index_folder(source) / "dataset.json").is_file():
            return hub_dataset.index_folder(source)
        _check_finished(source)
    patience = patience or Patience(seconds=60.0)
    folder = mirror(source, cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            pass
    except OSError as error:
        raise UserError(f"data.cache {str(cache)!r} can't be written ({error}): give another folder") from error
    with locked(folder / ".lock") as lock:
        for left in folder.glob(".part.*.tmp") if lock is Lock.HELD else ():  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        info = _fetch(source, folder, "dataset.json", patience, dataset_format.read_info)
        named = folder / f".of-{info.digest}"  # whose index and classes lie here
        if not named.exists() or not _has_tables(folder):  # a crash of the node may have cut them
            for old in folder.glob(".of-*"):
                old.unlink()
            for name in _TABLES:
                _fetch(source, folder, name, patience, partial(_open_table, name=name))
            named.touch()
    return folder


def _check_finished(source: str) -> None:
    """Raises UserError if the folder on the Hub is neither a finished dataset nor indexed here."""
    if "dataset.json" in hub_dataset.files(source):
        return
    others = [f"an index of another commit is here: give {other}, or " for other in hub_dataset.indexed(source)[-1:]]
    raise UserError(
        f"dataset {source!r} has no dataset.json and no index in VIT_CACHE ({str(cache_folder())!r}): "
        f"{''.join(others)}make its index with: vit index {source}"
    )


def tars_of(source: str, info: DatasetInfo) -> str:
    """Where the tars of a dataset are: in its folder, or on the Hub if ``vit index`` has indexed them there.

    Raises UserError if dataset.json names another place, which may come from others and be a command.
    """
    tars = info.options.get("tars", source)
    if tars != source and not (
        isinstance(tars, str) and hub_dataset.is_hub(tars) and hub_dataset.parse(tars).is_pinned
    ):
        raise UserError(f"dataset {source!r}: dataset.json says that its tars are at {tars!r}: index them again")
    return str(tars)


def _open_table(folder: Path, name: str) -> None:
    """Raises UserError if it is damaged."""
    dataset_format.open_parquet(folder / name).close()


def _has_tables(folder: Path) -> bool:
    try:
        for name in _TABLES:
            _open_table(folder, name)
    except UserError:
        return False
    return True


def mirror(source: str, cache: Path) -> Path:
    """The folder in which open_folder keeps a remote dataset's small files."""
    return cache / "sets" / xxhash.xxh3_64_hexdigest(source.encode())


def check_shards(source: str, folder: Path, wanted: Sequence[ShardInfo], patience: Patience | None = None) -> None:
    """Raises UserError if a shard is missing or its size differs from dataset.json."""
    patience = patience or Patience(seconds=60.0)
    if source.startswith("pipe:"):
        return  # only reading a file would tell
    if hub_dataset.is_hub(source):
        known = hub_dataset.files(source)  # one request per node and commit
        for shard in wanted:
            stated = known.get(shard.file_name)
            if stated != shard.bytes:
                wrong = "no such file" if stated is None else f"{stated} bytes, not {shard.bytes}"
                raise UserError(
                    f"shard {join(source, shard.file_name)!r} is missing or differs ({wrong}): index or upload it again"
                )
        return
    names = " ".join(f"{shard.file_name} {shard.bytes} {shard.xxh3_128}" for shard in wanted)
    mark = folder / f".found-{xxhash.xxh3_64_hexdigest(names.encode())}"
    with locked(folder / ".lock"):
        if mark.exists() and time.time() - mark.stat().st_mtime < CHECKED:
            return

        for shard, found in zip(wanted, _sizes(source, wanted, patience), strict=True):
            if isinstance(found, Exception) and not isinstance(found, GoneError | OSError):
                raise found
            if found not in (shard.bytes, -1):
                wrong = str(found) if isinstance(found, Exception) else f"has {found} bytes, not {shard.bytes}"
                raise UserError(
                    f"shard {join(source, shard.file_name)!r} is missing or differs ({wrong}): upload it again"
                )
        mark.touch()


def _sizes(source: str, wanted: Sequence[ShardInfo], patience: Patience) -> list[int | Exception]:
    """Bytes of each shard, -1 if unknown, or why it can't be had. Ctrl-C ends it at once, unlike an executor."""
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(wanted)):
        places.put(place)
    found: dict[int, int | Exception] = {}

    def ask() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                place = places.get_nowait()
                try:
                    found[place] = size_of(join(source, wanted[place].file_name), patience)
                except Exception as error:  # raised by the caller, in the order of the shards
                    found[place] = error

    threads = [threading.Thread(target=ask, daemon=True, name="shard sizes") for _ in range(CHECKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(wanted))]


def _fetch(source: str, folder: Path, name: str, patience: Patience, read: Callable[[Path], Item]) -> Item:
    """Fetch a small file of a dataset and return what ``read`` makes of it; fetch it again once if it is damaged."""
    url, aside = join(source, name), temporary(folder / "part") / name
    try:
        return _fetched(source, url, aside, folder, patience, read)
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _fetched(
    source: str, url: str, aside: Path, folder: Path, patience: Patience, read: Callable[[Path], Item]
) -> Item:
    for last in (False, True):
        try:
            aside.parent.mkdir(exist_ok=True)
            with aside.open("wb") as file:
                for block in read_blocks(url, size_of(url, patience), patience):
                    file.write(block)
        except (GoneError, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # of the file system: those of the source are in words
                raise UserError(
                    f"data.cache {str(folder.parent.parent)!r} can't be written ({error}): free some space, or give "
                    "another folder"
                ) from error
            raise UserError(
                f"dataset {source!r}: {aside.name} can't be read ({error}): give the URL of a finished dataset's folder"
            ) from error
        try:
            found = read(aside.parent)
        except UserError as error:
            if last:
                raise UserError(str(error).replace(str(aside), url)) from error
            continue
        put_in_place(aside, folder / aside.name)
        return found
    raise AssertionError
