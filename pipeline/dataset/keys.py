"""The names of samples: from rows of a split, which the loader counts, to keys, which the raw images are found by."""

from pathlib import Path

from pipeline.dataset.format import read_index


def split_keys(folder: Path, split: str) -> list[str]:
    """The key of each sample of a split, by row."""
    table = read_index(folder, ["split", "key"])
    table = table.filter(table.column("split").cast("string").to_numpy() == split)
    return table.column("key").to_pylist()  # type: ignore[no-any-return]
