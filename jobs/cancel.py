"""python -m jobs.cancel RUN ...: end the Slurm jobs of runs, pending ones too."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.runs.overview import slurm_starts
from pipeline.runs.slurm_queue import QueuedJob, ask_queue, jobs_of

DESCRIPTION = """Cancel the Slurm jobs of runs, running or pending. A cancelled job isn't requeued; nothing is asked.

The run keeps its checkpoints: submit it again to resume it. Examples:

  python -m jobs.cancel work/runs/pretrain-l16
  python -m jobs.cancel work/runs/finetune-l16-lr0.03 work/runs/finetune-l16-lr0.06
  python -m jobs.cancel work/runs/finetune-l16"""


@dataclass(frozen=True)
class CancelConfig:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Run folders; of a run whose first job is pending, the folder that it will have; of an array, its job's name."""


def main() -> int:
    config = cli.parse(CancelConfig, prog="python -m jobs.cancel", description=DESCRIPTION)
    if not config.runs:
        raise UserError("RUN is missing: name the run folders whose jobs are to be cancelled")
    for run in config.runs:
        check_local(run, "RUN")
    try:
        queue = ask_queue()
    except UserError as error:
        raise UserError(f"RUN {str(config.runs[0])!r}: {error}") from error
    found = {run: jobs_to_cancel(run, queue) for run in config.runs}
    for run, jobs in found.items():
        if not jobs and not run.is_dir():
            raise UserError(f"RUN {str(run)!r} does not exist and has no job in Slurm's queue: name a run folder")
    for run, jobs in found.items():
        if not jobs:
            print(f"{run}: no job in Slurm's queue, nothing to cancel")
        for job, state in jobs.items():
            done = subprocess.run(
                ["scancel", job], encoding="utf-8", errors="replace", capture_output=True, timeout=60, check=False
            )
            if done.returncode:
                raise UserError(f"scancel {job} failed ({' '.join(done.stderr.split())}): the job may live on")
            print(f"{run}: cancelled job {job}, which was {state.lower()}")
    return errors.EXIT_DONE


def jobs_to_cancel(run: Path, queue: dict[str, QueuedJob]) -> dict[str, str]:
    """Jobs by the id that scancel takes, with their states.

    They are the one that started last in the run folder, alone if it is a task of an array, and those of the run's name
    that have not started in it: of an array, which has a name without the learning rate, all tasks.
    """
    started = slurm_starts(run)[0]
    found = {queue[started].task: queue[started].state} if started in queue else {}
    others = (queued for job, queued in jobs_of(run.resolve().name, queue).items() if job != started)
    return found | {queued.array: queued.state for queued in others}


if __name__ == "__main__":
    cli.run(main)
