"""Opening MLflow's database: whatever the folder is called, and whether or not its file system has locks."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from pipeline.tracking import client

# SQLAlchemy's, of MLflow's own tables
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_a_database_on_a_file_system_without_locks_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def flock(_: object, how: int) -> None:
        asked.append(how)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    client.open_client(f"sqlite:///{tmp_path}/mlflow.db").create_experiment("a")
    assert asked
    assert all(how & fcntl.LOCK_NB for how in asked), "a blocking flock may wait without an end"
