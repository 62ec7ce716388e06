"""Make a dataset with data_prep.shard, and read what it holds."""

import tarfile
from pathlib import Path

from data_prep import shard
from pipeline.dataset import format as dataset_format
from tests.data_prep.releases import add


def shard_into(*arguments: object) -> Path:
    """``vit shard INPUT OUTPUT ...`` in this process; returns OUTPUT."""
    assert shard.main([str(argument) for argument in arguments]) == 0
    return Path(str(arguments[1]))


def keys(dataset: Path) -> set[str]:
    return set(dataset_format.read_index(dataset, ["key"])["key"].to_pylist())


def wnids(dataset: Path) -> list[str]:
    found: list[str] = dataset_format.read_classes(dataset)["wnid"].to_pylist()
    return found


def samples(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def rejects(dataset: Path) -> list[str]:
    found: list[str] = dataset_format.read_rejects(dataset, ["reason"])["reason"].to_pylist()
    return sorted(found)


def labels(dataset: Path) -> dict[str, int]:
    table = dataset_format.read_index(dataset, ["key", "label"])
    return dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))
