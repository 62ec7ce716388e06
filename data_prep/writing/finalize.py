"""The last step of making a dataset: merge the finished shards' rows, and write dataset.json after everything else."""

import collections
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep import tables as catalogue
from data_prep import work_folder
from data_prep.tables import write_parquet
from data_prep.writing import build_shard
from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from pipeline.core.version import VERSION
from pipeline.dataset import format as dataset_format
from pipeline.dataset.format import INDEX_SCHEMA, REJECTS_SCHEMA, DatasetInfo, ShardInfo


def finalize(
    output: Path, *, name: str, seed: int, options: dict[str, Any], classes: pa.Table, expected: list[tuple[str, int]]
) -> DatasetInfo:
    """Merge the ``expected`` shards' (split, shard) rows from the work folder. Raises UserError if one is missing."""
    infos = [build_shard.read_done(work_folder.done_path(output, *where)) for where in expected]
    missing = [
        dataset_format.shard_file_name(*where)
        for where, info in zip(expected, infos, strict=True)
        if info is None or (info.samples and not _has_size(output / info.file_name, info.bytes))
    ]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(expected)} shards of {str(output)!r} are missing ({', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}): run the tasks that write them, then --finalize again"
        )
    finished = [info for info in infos if info]
    kept = [info for info in finished if info.samples]
    if not kept:
        raise UserError("no image of INPUT could be used: " + _reasons(output, expected))
    for info in finished:
        if not info.samples:  # every image was rejected; a killed start may have deleted it
            (output / info.file_name).unlink(missing_ok=True)
    rows = (catalogue.whole(work_folder.done_path(output, info.split, info.shard)) for info in kept)
    write_parquet(output / "index.parquet", INDEX_SCHEMA, rows)
    rejects = write_parquet(output / "rejects.parquet", REJECTS_SCHEMA, _rejects(output, expected))
    dataset = describe(output, name=name, seed=seed, options=options, classes=classes, made=kept, rejects=rejects)
    for left in output.glob(".*.tmp"):  # left by killed runs
        left.unlink()
    shutil.rmtree(work_folder.work_folder(output), ignore_errors=True)
    return dataset


def check_sizes(output: Path, info: DatasetInfo) -> None:
    """Raise UserError unless all of a finished dataset's shards still exist and have their sizes."""
    wrong = [shard.file_name for shard in info.shards if not _has_size(output / shard.file_name, shard.bytes)]
    if wrong:
        raise UserError(
            f"OUTPUT {str(output)!r} was finished, but {len(wrong)} of its shards are now missing or cut short "
            f"({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}): restore them, or delete OUTPUT to start over"
        )


def describe(
    output: Path,
    *,
    name: str,
    seed: int,
    options: dict[str, Any],
    classes: pa.Table,
    made: list[ShardInfo],
    rejects: int,
) -> DatasetInfo:
    """Write classes.parquet, _info.json and, last of all, dataset.json."""
    write_parquet(output / "classes.parquet", dataset_format.CLASSES_SCHEMA, [classes])
    samples: collections.Counter[str] = collections.Counter()
    for info in made:
        samples[info.split] += info.samples
    wnids: list[str] = classes["wnid"].to_pylist()
    dataset = dataset_format.with_digest(
        DatasetInfo(
            name=name,
            format_version=dataset_format.FORMAT_VERSION,
            tool_version=VERSION,
            classes=len(wnids),
            classes_digest=dataset_format.classes_digest(wnids),
            samples=dict(samples),
            rejects=rejects,
            seed=seed,
            options=options,
            shards=tuple(made),
            digest="",
        )
    )
    write_text(output / "_info.json", json.dumps(timm_info(dataset), indent=1) + "\n")
    write_text(output / "dataset.json", dataset_format.to_json(dataset))
    return dataset


def classes_table(wnids: list[str], names: list[str]) -> pa.Table:
    return pa.table([pa.array(range(len(wnids)), pa.int32()), wnids, names], schema=dataset_format.CLASSES_SCHEMA)


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


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _rejects(output: Path, expected: list[tuple[str, int]]) -> Iterator[pa.Table]:
    yield from catalogue.batches(work_folder.work_folder(output) / "plan" / "rejects.arrow")
    for split, shard in expected:
        yield catalogue.whole(work_folder.done_path(output, split, shard).with_suffix(".rejects"))


def _reasons(output: Path, expected: list[tuple[str, int]]) -> str:
    counts: collections.Counter[str] = collections.Counter()
    for table in _rejects(output, expected):
        counts.update(table["reason"].to_pylist())
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
