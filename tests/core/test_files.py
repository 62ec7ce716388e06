"""Files that appear whole."""

import concurrent.futures
import errno
from pathlib import Path

import pytest

from pipeline.core.files import read_json, write_json


def test_two_processes_may_write_one_file_at_once(tmp_path: Path) -> None:
    """One temporary name for both: the later one's rename found nothing to rename."""
    path = tmp_path / "owner.json"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_json(path, {"number": number}), range(100)))
    assert read_json(path)["number"] in range(100)
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside"


def test_json_is_read_again_after_a_transient_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "owner.json", {"number": 1})
    read_bytes, failures = Path.read_bytes, [OSError(errno.ESTALE, "Stale file handle")]

    def stale_once(path: Path) -> bytes:
        if failures:
            raise failures.pop()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", stale_once)
    assert read_json(tmp_path / "owner.json") == {"number": 1}
    assert not failures
