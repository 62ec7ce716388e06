"""Files that appear whole."""

import concurrent.futures
from pathlib import Path

from pipeline.core.files import read_json, write_json


def test_two_processes_may_write_one_file_at_once(tmp_path: Path) -> None:
    """One temporary name for both: the later one's rename found nothing to rename."""
    path = tmp_path / "owner.json"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_json(path, {"number": number}), range(100)))
    assert read_json(path)["number"] in range(100)
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside"
