"""What a new run's folder may hold."""

from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.train.setup import check_no_others_files


def test_files_of_others_are_refused_and_those_that_rank_0_writes_aside_are_not(tmp_path: Path) -> None:
    check_no_others_files(tmp_path / "new")
    (tmp_path / ".owner.json.1e5cbc44.tmp").touch()
    check_no_others_files(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"holds photo\.jpg, but no run: name a new folder"):
        check_no_others_files(tmp_path)
    (tmp_path / "owner.json").touch()
    check_no_others_files(tmp_path)
