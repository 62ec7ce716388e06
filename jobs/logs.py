"""python -m jobs.logs RUN [--rank N] [--follow]: what a run's Slurm job, or one of its ranks, has printed."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import tyro

from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.runs.folder import read_status
from pipeline.runs.slurm_queue import jobs_of, read_queue

DESCRIPTION = """Show the log of a run's latest Slurm job, in which all ranks are, or the log of one rank.

RUN may be a run whose first job is still pending. Examples:

  python -m jobs.logs work/runs/pretrain-l16
  python -m jobs.logs work/runs/pretrain-l16 --follow
  python -m jobs.logs work/runs/pretrain-l16 --rank 13 | tail -n 50"""

PAUSE = 0.5  # seconds between two looks at a log that is followed
LOOKS = 10  # of those, until the run's state is read again


@dataclass(frozen=True)
class LogsConfig:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of a Slurm job."""
    rank: int | None = None
    """Show this rank's log, all attempts, instead of the job's."""
    follow: bool = False
    """Keep printing until the run is finished or has failed (or Ctrl-C)."""


def main() -> int:
    config = cli.parse(LogsConfig, prog="python -m jobs.logs", description=DESCRIPTION)
    check_local(config.run, "RUN")
    if config.rank is not None and config.rank < 0:
        raise UserError(f"--rank {config.rank} is too small: ranks are numbered from 0")
    path = log_path(config.run, config.rank)
    if not path.exists():
        check(config, path)
    if config.follow:
        follow(config.run, path)
    else:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                sys.stdout.write(line)
    return errors.EXIT_DONE


def log_path(run: Path, rank: int | None) -> Path:
    return run / "slurm" / ("job.log" if rank is None else f"rank-{rank:04d}.log")


def check(config: LogsConfig, path: Path) -> None:
    """Raise UserError for a log that isn't there, unless it is to be followed and its job is queued."""
    queued = next(iter(jobs_of(config.run.resolve().name, read_queue()).items()), None)
    if queued is None:
        if not config.run.is_dir():
            raise UserError(f"RUN {str(config.run)!r} does not exist and has no job in Slurm's queue: name another")
        if not (config.run / "slurm").is_dir():
            raise UserError(f"RUN {str(config.run)!r} was not started by Slurm: its output went to its terminal")
        if config.rank is not None and (logs := sorted((config.run / "slurm").glob("rank-*.log"))):
            raise UserError(f"--rank {config.rank} has no log: there are {logs[0].name} to {logs[-1].name}")
        raise UserError(f"{str(path)!r} does not exist: the job's log was moved or deleted; try --rank 0")
    job, facts = queued
    said = f"job {job} is {facts.state.lower()}" + (f" ({facts.reason})" if facts.state == "PENDING" else "")
    if not config.follow:
        raise UserError(f"{said}, and there is no log yet: wait for it with --follow")
    print(f"{said}: waiting for its log", file=sys.stderr)


def follow(run: Path, path: Path) -> None:
    """Print ``path`` as it grows, and the next job's log when the link changes, until the run has ended."""
    file: TextIO | None = None
    opened = ended = None
    while True:
        if path.exists() and path.resolve() != opened:
            opened = path.resolve()
            file = opened.open(encoding="utf-8", errors="replace")
        if file is not None:
            sys.stdout.write(file.read())
            sys.stdout.flush()
        if ended:
            return
        for _ in range(LOOKS):
            time.sleep(PAUSE)
            if file is not None and (text := file.read()):
                sys.stdout.write(text)
                sys.stdout.flush()
        status = read_status(run)
        ended = status is not None and status.state in ("finished", "failed") and not jobs_of(run.name, read_queue())


if __name__ == "__main__":
    cli.run(main)
