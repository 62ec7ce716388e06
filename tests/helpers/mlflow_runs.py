"""Programs that send a run to MLflow, and what the run folder and the server have of it."""

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline.runs import records
from pipeline.runs.folder import METRICS
from tests.helpers.quick_python import executable

Values = Counter[tuple[str, int, int, str]]  # name, step, millisecond, value as text: NaN equals itself


@contextmanager
def program(run_dir: Path, *options: object, uri: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m tests.tracking.program RUN OPTIONS``, killed when the block ends."""
    variables = {name: value for name, value in os.environ.items() if name != "VIT_MLFLOW"}
    variables |= {"MLFLOW_TRACKING_URI": uri, **environment}
    command = [str(executable()), "-m", "tests.tracking.program", str(run_dir), *map(str, options)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def jobs_sync(*run_dirs: Path, uri: str, code: int = 0, **environment: str) -> str:
    """Run jobs.sync, which must have exit code ``code``; return its output."""
    done = subprocess.run(
        [str(executable()), "-m", "jobs.sync", *map(str, run_dirs)],
        capture_output=True, text=True, check=False, env=os.environ | {"MLFLOW_TRACKING_URI": uri, **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def shown(value: float) -> str:
    """As sqlite stores it: MLflow writes infinities as the largest floats."""
    if math.isinf(value):
        value = math.copysign(sys.float_info.max, value)
    return repr(value)


def on_server(client: MlflowClient, run_id: str) -> Values:
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith("system/")]
    return Counter(
        (name, point.step, point.timestamp, shown(point.value))
        for name in names
        for point in client.get_metric_history(run_id, name)
    )


def in_folder(run_dir: Path) -> Values:
    return Counter(
        (name, line.step, round(line.time * 1000), shown(value))
        for line in records.read_lines(run_dir / METRICS)[0]
        for name, value in line.metrics.items()
    )


def only_run(client: MlflowClient, run_dir: Path) -> Any:
    """The one MLflow run that has the key of ``run_dir``."""
    record = records.read_record(run_dir)
    assert record is not None
    experiment = client.get_experiment_by_name(record.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.run_key = '{record.key}'")
    assert len(runs) == 1
    return runs[0]


def log_of(run_dir: Path) -> str:
    path = run_dir / "mlflow.log"
    return path.read_text() if path.exists() else ""
