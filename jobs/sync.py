"""python -m jobs.sync RUN...: send to MLflow what a run folder holds and MLflow lacks."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.core import cli, errors, terminal
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.core.secrets import without_secrets
from pipeline.runs import records
from pipeline.tracking import client as mlflow_client
from pipeline.tracking import sync as mlflow_sync
from pipeline.tracking.tracker import OFF

DESCRIPTION = """Send run folders to MLflow: what was logged without network, during an outage, or before a crash.

Sends each value once, however often it is called, and closes runs that died; a run that the server's database has lost
is sent anew. Exit code 1: a run could not be sent, the others were. The server is MLFLOW_TRACKING_URI, or the file
mlflow.db beside the run folder. Examples:

  python -m jobs.sync runs/b16
  MLFLOW_TRACKING_URI=https://mlflow.lab.example python -m jobs.sync runs/*
  MLFLOW_TRACKING_URI=sqlite:////backup/mlflow.db python -m jobs.sync runs/l16 runs/l16-ft"""


@dataclass(frozen=True)
class SyncConfig:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders."""


def main() -> int:
    config = cli.parse(SyncConfig, prog="python -m jobs.sync", description=DESCRIPTION)
    if not config.runs:
        raise UserError("RUN is missing: name one or more run folders (see python -m jobs.sync --help)")
    for run_dir in config.runs:
        check_local(run_dir, "RUN")
        if not run_dir.exists():
            raise UserError(f"RUN {str(run_dir)!r} does not exist: name a run folder of jobs.pretrain or jobs.finetune")
    folders = [run_dir for run_dir in config.runs if (run_dir / records.RECORD).is_file()]  # runs/* has mlflow.db too
    if not folders:
        raise UserError(
            f"RUN {str(config.runs[0])!r} has no {records.RECORD}: it is no run folder, or was never started"
        )
    mlflow_client.quiet_environment()
    failed = 0
    for run_dir in folders:
        try:
            print(f"{run_dir}: {sync(run_dir)}", flush=True)
        except UserError as error:  # a damaged run, say: the others still want their turn
            if len(folders) == 1:
                raise
            failed += 1
            print(f"{run_dir}: not sent: {error}", file=sys.stderr, flush=True)
        except Exception as error:  # whatever the server or its client raise
            failed += 1
            uri = without_secrets(mlflow_client.tracking_uri(run_dir))
            print(f"{run_dir}: not sent, MLflow at {uri}: {mlflow_client.reason(error)}", flush=True)
    return errors.EXIT_DONE if not failed else 1


def sync(run_dir: Path) -> str:
    """Send one run; says what was done."""
    with mlflow_sync.locked(run_dir) as mine:
        if not mine:
            return "its training is syncing it now"
        record = records.read_record(run_dir)
        assert record is not None
        died = record.attempts[-1].state == "RUNNING" and not records.alive(run_dir, record.attempts[-1])
        if died:
            record = records.close_dead(run_dir, record)
            records.write_record(run_dir, record)
        with terminal.console().status(f"{run_dir} -> {without_secrets(mlflow_client.tracking_uri(run_dir))}"):
            before = mlflow_sync.read_sent(run_dir)
            count = mlflow_sync.sync(run_dir)
        sent = mlflow_sync.read_sent(run_dir)
        assert sent is not None
        if before and before.uri == sent.uri and before.run_id != sent.run_id:
            print(f"{run_dir}: MLflow at {sent.uri} no longer has run {before.run_id}: a new one gets everything")
        state = record.attempts[-1].state.lower()
        for name in mlflow_sync.missing_artifacts(run_dir, record, sent) if state != "running" else ():
            print(f"warning: {run_dir}: {name} is to be sent with the run and isn't there", file=sys.stderr)
        return f"{count:,} values sent, {state}{' (it died)' if died else ''}, MLflow run {sent.run_id} at {sent.uri}"


def send(folder: Path) -> None:
    """Send what another command has added to a run's folder, unless MLflow is off; a failure costs a line alone."""
    if os.environ.get(OFF) == "off":
        return
    mlflow_client.quiet_environment()
    try:
        sync(folder)
    except Exception as error:  # whatever the server or its client raise
        print(
            f"warning: {folder} is not sent to MLflow ({mlflow_client.reason(error)}): python -m jobs.sync {folder}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    cli.run(main)
