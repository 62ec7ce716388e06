"""From a planned source to a finished data set: shards made by processes and tasks, resumed, then merged.

Everything unfinished lies in ``OUTPUT/.work``: the catalogue and plan, and for each finished shard its index rows and
rejects. A shard's tar appears by a rename, then its index rows by another; both there and of the right hash means
done. Tasks share nothing but this folder.
"""

import collections
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pyarrow import ipc

from data_prep import catalogue, images, workers
from data_prep.images import ImageOptions, RejectedError
from data_prep.writer import ShardWriter
from pipeline import shards
from pipeline.cli import UserError
from pipeline.shards import INDEX_SCHEMA, REJECTS_SCHEMA, DatasetInfo, ShardInfo

ROW_GROUP = 131_072  # rows of index.parquet
READ_AHEAD = 32  # images whose bytes the kernel is asked to fetch before they are needed
REPORT_EVERY = 64  # images
NOT_DEFECTS = frozenset({"class_not_listed", "excluded", "other_file", "duplicate_name"})  # outside the failure budget


@dataclass(frozen=True)
class ShardTask:
    """One shard to make."""

    output: Path
    split: str
    shard: int
    options: ImageOptions


def work_folder(output: Path) -> Path:
    return output / ".work"


def plan_path(output: Path, split: str) -> Path:
    return work_folder(output) / "plan" / f"plan-{split}.arrow"


def done_path(output: Path, split: str, shard: int) -> Path:
    return work_folder(output) / "done" / f"{split}-{shard:05d}.arrow"


def make_shard(task: ShardTask) -> ShardInfo:
    """Read, check and write the images of one shard; its index rows and rejects go beside it."""
    rows = catalogue.batch(plan_path(task.output, task.split), task.shard)
    columns = {name: rows[name].to_pylist() for name in ("wnid", "name", "file", "offset", "size", "key", "label")}
    written: list[tuple[Any, ...]] = []
    rejects: list[tuple[str, str, int, str, str]] = []
    seen: set[str] = set()
    counts: collections.Counter[str] = collections.Counter()
    with SourceFiles() as files, ShardWriter(task.output / shards.shard_file_name(task.split, task.shard)) as writer:
        for row, (wnid, name, file, offset, size, key, label) in enumerate(zip(*columns.values(), strict=True)):
            if row % READ_AHEAD == 0:
                ahead = slice(row + READ_AHEAD, row + 2 * READ_AHEAD)
                files.expect(columns["file"][ahead], columns["offset"][ahead], columns["size"][ahead])
            try:
                if size > images.LARGEST_FILE:
                    raise RejectedError("too_large", f"{size:,} bytes, more than {images.LARGEST_FILE:,}")
                if key in seen:
                    raise RejectedError("duplicate_key", f"another image of this shard has the key {key!r}")
                picture = images.prepare(files.read(file, offset, size), task.options)
            except RejectedError as error:
                rejects.append((f"{wnid}/{name}", wnid, size, error.reason, error.detail))
                counts[error.reason] += 1
            else:
                seen.add(key)
                at = writer.add(key, picture.data, label)
                digest = xxhash.xxh3_64_intdigest(picture.data)
                written.append(
                    (
                        *(key, task.split, task.shard, at, len(picture.data), label),
                        *(picture.width, picture.height, picture.orientation, picture.recoded, digest),
                    )
                )
            counts["images"] += 1
            counts["bytes"] += size
            if counts["images"] == REPORT_EVERY:
                workers.report(dict(counts))
                counts.clear()
    workers.report(dict(counts))
    info = ShardInfo(task.split, task.shard, len(written), writer.bytes, writer.xxh3_128)
    _save_done(task, info, written, rejects)
    return info


class SourceFiles:
    """Positioned reads from the files of a source, keeping tars open."""

    def __init__(self) -> None:
        self._tar = b""
        self._fd = -1

    def __enter__(self) -> "SourceFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def expect(self, files: list[bytes], offsets: list[int], sizes: list[int]) -> None:
        """Have the kernel fetch these soon; only useful where they lie in the tar that is open."""
        for file, offset, size in zip(files, offsets, sizes, strict=True):
            if file == self._tar:
                os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, file: bytes, offset: int, size: int) -> bytes:
        if file != self._tar:
            self._close()
            try:
                self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise RejectedError("unreadable", f"{os.fsdecode(file)}: {error.strerror}") from None
            self._tar = file
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                raise RejectedError("truncated", f"the source file ends {size - len(data)} bytes early")
            data += more
        return data

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._tar, self._fd = b"", -1


def _save_done(task: ShardTask, info: ShardInfo, written: list[Any], rejects: list[Any]) -> None:
    path = done_path(task.output, task.split, task.shard)
    catalogue.write(path.with_suffix(".rejects"), REJECTS_SCHEMA, [_table(rejects, REJECTS_SCHEMA)])
    schema = INDEX_SCHEMA.with_metadata({"shard": json.dumps(dataclasses.asdict(info))})
    catalogue.write(path, schema, [_table(written, INDEX_SCHEMA)])


def _table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    arrays = [_array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def read_done(output: Path, split: str, shard: int) -> ShardInfo | None:
    """What a finished shard's rows say of it; ``None`` where it isn't finished."""
    path = done_path(output, split, shard)
    if not path.is_file():
        return None
    with path.open("rb") as file, ipc.open_file(file) as reader:
        return ShardInfo(**json.loads(reader.schema.metadata[b"shard"]))


def is_intact(output: Path, info: ShardInfo) -> bool:
    """Whether the tar on disk is the one that was written."""
    path = output / info.file_name
    if not path.is_file() or path.stat().st_size != info.bytes:
        return False
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == info.xxh3_128


def all_shards(samples: dict[str, int], samples_per_shard: int) -> list[tuple[str, int]]:
    return [
        (split, shard) for split, count in sorted(samples.items()) for shard in range(-(-count // samples_per_shard))
    ]


def finalize(
    output: Path, *, name: str, seed: int, options: dict[str, Any], classes: pa.Table, expected: list[tuple[str, int]]
) -> DatasetInfo:
    """Merge the finished shards' rows and write dataset.json last. Raises UserError where a shard is missing."""
    infos = [read_done(output, split, shard) for split, shard in expected]
    finished = [info for info in infos if info]
    if len(finished) < len(expected):
        missing = [shards.shard_file_name(*where) for where, info in zip(expected, infos, strict=True) if not info]
        raise UserError(
            f"{len(missing)} of {len(expected)} shards of {str(output)!r} are missing ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}): run the tasks that make them, then --finalize again"
        )
    for info in finished:
        if not info.samples:  # every image was rejected
            (output / info.file_name).unlink(missing_ok=True)
    kept = [info for info in finished if info.samples]
    if not kept:
        raise UserError("no image of INPUT could be used: " + _reasons(output, expected))
    wnids: list[str] = classes["wnid"].to_pylist()
    _write_parquet(output / "index.parquet", INDEX_SCHEMA, (_whole(done_path(output, i.split, i.shard)) for i in kept))
    rejects = _write_parquet(output / "rejects.parquet", REJECTS_SCHEMA, _rejects(output, expected))
    _write_parquet(output / "classes.parquet", shards.CLASSES_SCHEMA, [classes])
    samples: dict[str, int] = collections.Counter()
    for info in kept:
        samples[info.split] += info.samples
    dataset = shards.with_digest(
        DatasetInfo(
            name=name,
            format_version=shards.FORMAT_VERSION,
            tool_version=version("vit-pipeline"),
            classes=len(wnids),
            classes_digest=shards.classes_digest(wnids),
            samples=dict(samples),
            rejects=rejects,
            seed=seed,
            options=options,
            shards=tuple(kept),
            digest="",
        )
    )
    write_text(output / "_info.json", json.dumps(timm_info(dataset), indent=1) + "\n")
    write_text(output / "dataset.json", shards.to_json(dataset))
    shutil.rmtree(work_folder(output), ignore_errors=True)
    return dataset


def timm_info(dataset: DatasetInfo) -> dict[str, Any]:
    """The form that timm's WebDataset reader looks for in ``_info.json``."""
    splits = {}
    for split, count in dataset.samples.items():
        own = dataset.split_shards(split)
        splits[split] = {
            "name": split,
            "num_samples": count,
            "filenames": [info.file_name for info in own],
            "shard_lengths": [info.samples for info in own],
        }
    return {"name": dataset.name, "splits": splits}


def _rejects(output: Path, expected: list[tuple[str, int]]) -> Iterator[pa.Table]:
    yield from catalogue.batches(work_folder(output) / "plan" / "rejects.arrow")
    for split, shard in expected:
        yield _whole(done_path(output, split, shard).with_suffix(".rejects"))


def _reasons(output: Path, expected: list[tuple[str, int]]) -> str:
    counts: collections.Counter[str] = collections.Counter()
    for table in _rejects(output, expected):
        counts.update(table["reason"].to_pylist())
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _whole(path: Path) -> pa.Table:
    with path.open("rb") as file, ipc.open_file(file) as reader:
        return reader.read_all().replace_schema_metadata(None)


def _write_parquet(path: Path, schema: pa.Schema, tables: Any) -> int:
    """Write row groups of about ROW_GROUP rows; the file appears when it is complete. Returns the rows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = waiting_rows = 0
    waiting: list[pa.Table] = []
    with temporary.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                waiting.append(table)
                rows += len(table)
                waiting_rows += len(table)
                if waiting_rows >= ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting).unify_dictionaries().combine_chunks())
                    waiting, waiting_rows = [], 0
            if waiting_rows or not rows:
                writer.write_table(
                    pa.concat_tables(waiting or [schema.empty_table()]).unify_dictionaries().combine_chunks()
                )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a file that is either complete or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
