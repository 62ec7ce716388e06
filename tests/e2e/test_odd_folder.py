"""A folder of any name holds everything: raw images, dataset, run and MLflow's database."""

import shutil
from pathlib import Path

import pytest

from pipeline.core.files import read_json
from pipeline.runs.folder import STATUS
from pipeline.tracking.client import open_client, sqlite_uri
from tests.helpers.jobs import job
from tests.helpers.launch import run
from tests.helpers.mlflow_runs import only_run
from tests.helpers.quick_python import executable


@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy about MLflow
def test_blanks_and_characters_of_urls(raw_digits: Path, tmp_path: Path) -> None:
    """Sharded, trained for two steps, saved and logged; nothing appears under a quoted or cut name beside it."""
    odd, log = tmp_path / "place" / "a b%20#?&é", tmp_path / "log"
    odd.mkdir(parents=True)
    raw = shutil.copy(raw_digits, odd / "raw #1%41.tar")
    data, run_dir = odd / "data?x=1", odd / "run 50%"
    python = str(executable())
    shard = ("-m", "data_prep.shard", raw, data, "--workers", 1, "--val-fraction", 0.2)
    run(*shard, log=log, python=python)
    pretrain = ("-m", *job(run_dir, data, "--schedule.warmup-steps", 1, steps=2))
    run(*pretrain, log=log, python=python, VIT_MLFLOW="on", MLFLOW_TRACKING_URI="")
    assert read_json(run_dir / STATUS)["state"] == "finished"
    assert (run_dir / "checkpoints").is_dir()
    logged = only_run(open_client(sqlite_uri(odd / "mlflow.db")), run_dir)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["train/loss"] > 0
    assert [path.name for path in odd.parent.iterdir()] == [odd.name]
    assert {path.name for path in odd.iterdir()} >= {"data?x=1", "run 50%", "mlflow.db"}
