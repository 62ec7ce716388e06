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


@pytest.mark.parametrize("name", ["My Passport", "100%, %20 #1?&\u00e9=+;@'\u65e5\u672c"])
def test_a_folder_of_any_name_has_the_database_and_the_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """MLflow made an empty folder My%20Passport beside it, or failed where it may not."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "media" / name
    folder.mkdir(parents=True)
    uri = client.tracking_uri(folder / "run")
    assert client.database_of(uri) == folder / "mlflow.db"
    opened = client.open_client(uri)
    experiment = opened.create_experiment("a", artifact_location=(folder / "mlartifacts" / "a").as_uri())
    run = opened.create_run(experiment)
    opened.log_text(run.info.run_id, "text", "file.txt")
    assert (folder / "mlflow.db").stat().st_size
    (written,) = (folder / "mlartifacts").rglob("file.txt")
    assert written.read_text() == "text"
    assert list((tmp_path / "media").iterdir()) == [folder]


def test_the_file_of_a_uri() -> None:
    assert client.database_of("http://host/mlflow.db") is None
    assert client.database_of("sqlite:///runs/mlflow.db") == Path("runs/mlflow.db")
    assert client.database_of("sqlite:////a%20b/mlflow.db?timeout=5") == Path("/a b/mlflow.db")
