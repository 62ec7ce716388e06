"""The index's records as a file that processes share."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import UserError
from pipeline.dataset import format as dataset_format
from pipeline.dataset.index import read_rows


def columns(digits: Path, split: str) -> dict[str, list[int]]:
    table = dataset_format.read_index(digits)
    rows = [row for row in table.to_pylist() if row["split"] == split]
    return {name: [row[name] for row in rows] for name in ("shard", "size", "label", "offset")}


@pytest.mark.parametrize("split", ["train", "val"])
def test_kept_or_in_memory_the_records_are_the_index(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    expected = columns(digits, split)
    samples = len(expected["shard"])
    for kept in (False, True, True):
        rows = read_rows(digits, split, samples, "digest", cached_from=1 if kept else samples + 1)
        assert isinstance(rows, np.memmap) is kept
        assert {name: rows[name].tolist() for name in expected} == expected
    assert len(list((tmp_path / "cache").iterdir())) == 1  # written once, nothing left beside it


def test_a_half_written_or_outdated_file_is_not_used(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    index = dataset_format.read_index(digits)
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(index, folder / "index.parquet")
    expected = columns(digits, "val")
    samples = len(expected["shard"])
    read_rows(folder, "val", samples, "digest", cached_from=1)
    (path,) = (tmp_path / "cache").iterdir()
    os.truncate(path, 100)
    assert read_rows(folder, "val", samples, "digest", cached_from=1)["offset"].tolist() == expected["offset"]
    later = index.set_column(index.schema.get_field_index("label"), "label", pa.array([3] * len(index), pa.int32()))
    pq.write_table(later, folder / "index.parquet")
    assert set(read_rows(folder, "val", samples, "digest", cached_from=1)["label"].tolist()) == {3}


def test_without_a_place_to_write_memory_will_do(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "file" / "cache"))
    expected = columns(digits, "val")
    rows = read_rows(digits, "val", len(expected["size"]), "digest", cached_from=1)
    assert rows["size"].tolist() == expected["size"]


def test_a_cache_of_somebody_else_that_cannot_be_read_is_done_without(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setenv("VIT_CACHE", str(tmp_path))
    monkeypatch.setattr("pipeline.dataset.index.np.memmap", refused)
    expected = columns(digits, "val")
    rows = read_rows(digits, "val", len(expected["size"]), "digest", cached_from=1)
    assert rows["size"].tolist() == expected["size"]
    (tmp_path / "plain").touch()  # with the rights that the umask gives
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("off", [-1, 1])
def test_an_index_that_differs_from_dataset_json_is_named(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path))
    samples = len(columns(digits, "val")["size"])
    for kept in (1, 10**9):
        with pytest.raises(UserError, match=f"has {samples} samples of split 'val' and dataset.json says"):
            read_rows(digits, "val", samples + off, "digest", cached_from=kept)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [1, 10**9])
def test_damaged_pages_of_the_index_are_named(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    data = bytearray((digits / "index.parquet").read_bytes())
    columns = pq.ParquetFile(digits / "index.parquet").metadata.row_group(0)
    (label,) = (columns.column(n) for n in range(columns.num_columns) if columns.column(n).path_in_schema == "label")
    data[label.data_page_offset : label.data_page_offset + 40] = bytes(40)
    (tmp_path / "index.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"index\.parquet' is damaged"):
        read_rows(tmp_path, "val", 1, "digest", cached_from=kept)


def test_opening_a_data_set_imports_no_pandas(digits: Path) -> None:
    """Which costs each rank and each worker of a start a third of a second."""
    program = (
        "import sys; from pathlib import Path; from pipeline.dataset.joined_split import open_split; "
        f"open_split({str(digits)!r}, 'train'); from pipeline.dataset.format import read_classes; "
        f"read_classes(Path({str(digits)!r})).to_pylist(); sys.exit('pandas' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
