"""A database that another MLflow version made: the run goes on in it, or one line says what to do.

mlflow_3.16.sql.gz is what ``python -m tests.tracking.test_migration PATH`` wrote with MLflow 3.16.1 first on PYTHONPATH
(``pip install --no-deps --target OLD mlflow==3.16.1 mlflow-skinny==3.16.1 mlflow-tracing==3.16.1``): an sqlite dump of
the copy of :func:`write_run`'s first attempt.
"""

import gzip
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.core.files import write_json
from pipeline.runs import records
from pipeline.runs.folder import METRICS
from pipeline.runs.records import Attempt, Line, Record
from tests.helpers.mlflow_runs import in_folder, jobs_sync, on_server, only_run

# SQLAlchemy's, of MLflow's own tables
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

DUMP = Path(__file__).with_name("mlflow_3.16.sql.gz")
FOLDER = "/the/runs"  # in the dump, for the folder of the runs
START = 1_760_000_000.0  # unix seconds


def write_run(run_dir: Path, attempts: int) -> None:
    """A run folder that is the same whenever it is written: ten steps an attempt."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "config.json", {"stage": "pretrain", "recipe": "tiny"})
    begun = [START + 100 * index for index in range(attempts)]
    record = Record(
        key="0123456789abcdef0123456789abcdef",
        experiment="old",
        name="old run",
        params={"optim.lr": 0.1},
        tags={"team": "vision"},
        artifacts=[[str((run_dir / "config.json").absolute()), ""]],
        attempts=[
            Attempt(index + 1, 10 * index, start, 1, {"host": "node1"}, "KILLED", start + 10)
            for index, start in enumerate(begun)
        ],
    )
    records.write_record(run_dir, record)
    lines = [
        Line(
            10 * index + step,
            80 * index + 8 * step,
            start + step,
            index + 1,
            {"train/loss": 1 / step, "eval/top1": 0.5},
        )
        for index, start in enumerate(begun)
        for step in range(1, 11)
    ]
    (run_dir / METRICS).write_bytes(b"".join(map(records.to_json, lines)))


def restore(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(gzip.decompress(DUMP.read_bytes()).decode().replace(FOLDER, str(database.parent)))


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("select version_num from alembic_version").fetchone()[0])


def test_a_run_goes_on_in_the_database_of_the_minor_version_before(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    restore(database)
    old = revision(database)
    write_run(tmp_path / "run", 2)
    for _ in range(2):
        jobs_sync(tmp_path / "run", uri="")
        client = MlflowClient(f"sqlite:///{database}")
        run = only_run(client, tmp_path / "run")  # the old one, found by its key
        assert run.info.start_time == round(START * 1000)
        assert on_server(client, run.info.run_id) == in_folder(tmp_path / "run")
        assert run.data.params == {"optim.lr": "0.1"}
        assert run.data.tags["attempts"] == "2"
    assert revision(database) != old
    with gzip.open(DUMP, "rt") as dump:
        assert run.info.run_id in dump.read()


def test_a_newer_database_is_refused_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 1)
    jobs_sync(tmp_path / "run", uri="")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:  # as a version that adds a column leaves it
        connection.execute("update alembic_version set version_num = 'fedcba987654'")
        connection.commit()
    for command in (["jobs.sync", str(tmp_path / "run")], ["jobs.compare", "--experiment", "old"]):
        done = job(command, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert "newer MLflow than the installed" in done.stderr
        assert done.stdout == ""


def job(module: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *module], capture_output=True, text=True, check=False, env=os.environ | variables
    )


@pytest.mark.soak
def test_an_older_database_is_refused_until_it_is_upgraded(tmp_path: Path) -> None:
    """MLflow 3.16 refuses what 3.15 made, because it only added a column (3.17 adds tables, and does so by itself)."""
    old, new = (with_mlflow(tmp_path / version, version) for version in ("3.15.2", "3.16.1"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    write_run(tmp_path / "run", 1)
    assert job(["jobs.sync", str(tmp_path / "run")], **old).returncode == 0
    write_run(tmp_path / "run", 2)
    done = job(["jobs.sync", str(tmp_path / "run")], **new)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"run: mlflow db upgrade {uri}" in done.stderr
    assert job(["mlflow", "db", "upgrade", uri], **new).returncode == 0
    done = job(["jobs.sync", str(tmp_path / "run")], **new)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(uri)  # the installed version, which brings the file up to date once more
    assert on_server(client, only_run(client, tmp_path / "run").info.run_id) == in_folder(tmp_path / "run")


def with_mlflow(folder: Path, version: str) -> Mapping[str, str]:
    """Variables that put another MLflow before the installed one."""
    packages = [f"{name}=={version}" for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
    subprocess.run(command, check=True)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())]), "MLFLOW_TRACKING_URI": ""}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)
        write_run(runs / "run", 1)
        jobs_sync(runs / "run", uri="")
        with closing(sqlite3.connect(runs / "mlflow.db")) as connection:
            text = "\n".join(connection.iterdump())
    for folder in (str(runs), str(Path.cwd())):
        text = text.replace(folder, FOLDER)
    Path(sys.argv[1]).write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
