"""python -m jobs.sync RUN...: send MLflow what is in a run folder but not in MLflow."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.runs.folder import RECORD
from pipeline.tracking.resend import resend_all

DESCRIPTION = """Send run folders to MLflow: what was logged without a network, during an outage, or before a crash.

Sends each value once, however often it is called, and closes runs that died. A run that the server has lost is sent
again. Exits with 1 if a run could not be sent; the others are. The server is MLFLOW_TRACKING_URI, by default the file
mlflow.db beside the run folder. Examples:

  python -m jobs.sync runs/b16
  MLFLOW_TRACKING_URI=https://mlflow.lab.example python -m jobs.sync runs/*
  MLFLOW_TRACKING_URI=sqlite:////backup/mlflow.db python -m jobs.sync runs/l16 runs/l16-ft"""


@dataclass(frozen=True)
class SyncConfig:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Run folders."""


def main() -> int:
    config = cli.parse(SyncConfig, prog="python -m jobs.sync", description=DESCRIPTION)
    if not config.runs:
        raise UserError("RUN is missing: name one or more run folders (see python -m jobs.sync --help)")
    for run_dir in config.runs:
        check_local(run_dir, "RUN")
        if not run_dir.exists():
            raise UserError(f"RUN {str(run_dir)!r} does not exist: name a run folder of jobs.pretrain or jobs.finetune")
    folders = [run_dir for run_dir in config.runs if (run_dir / RECORD).is_file()]  # runs/* also matches mlflow.db
    for other in sorted(set(config.runs) - set(folders)) if folders else ():
        print(f"note: {other} is skipped: it is not a run folder (no {RECORD})", file=sys.stderr)
    if not folders:
        raise UserError(f"RUN {str(config.runs[0])!r} has no {RECORD}: name the folder of a run that was started")
    return 1 if resend_all(folders) else errors.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
