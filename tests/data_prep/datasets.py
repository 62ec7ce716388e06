"""Make a dataset with data_prep.shard, and read what it holds."""

from pathlib import Path

from data_prep import shard
from pipeline.dataset import format as dataset_format


def shard_into(*arguments: object) -> Path:
    """``vit shard INPUT OUTPUT ...`` in this process; returns OUTPUT."""
    assert shard.main([str(argument) for argument in arguments]) == 0
    return Path(str(arguments[1]))


def keys(dataset: Path) -> set[str]:
    return set(dataset_format.read_index(dataset, ["key"])["key"].to_pylist())


def wnids(dataset: Path) -> list[str]:
    found: list[str] = dataset_format.read_classes(dataset)["wnid"].to_pylist()
    return found
