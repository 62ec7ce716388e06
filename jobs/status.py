"""python -m jobs.status [FOLDER ...]: where every run stands: state, step, ETA, checkpoint, goodput, why pending."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from pipeline.core import cli, errors, terminal
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.core.units import duration
from pipeline.runs import records
from pipeline.runs.folder import Status, complete, read_status, step_of

DESCRIPTION = """Show runs and a campaign's other jobs as a table, from their folders and Slurm's queue.

FOLDER is a run folder, a folder of run folders, or a campaign's folder (slurm/submit_all.sh). Examples:

  python -m jobs.status
  python -m jobs.status work/runs work/campaigns/l16
  watch -n 30 python -m jobs.status --json work/runs/pretrain-l16"""

ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY",
    "REVOKED", "SPECIAL_EXIT",
}  # fmt: skip


@dataclass(frozen=True)
class StatusConfig:
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER ...]")] = ()
    """Default: work/runs and work/campaigns, as far as they exist."""
    json: bool = False
    """Print JSON, a row a line, instead of the table."""


@dataclass(frozen=True)
class QueuedJob:
    """A job in Slurm's queue."""

    state: str  # PENDING, RUNNING, ...
    reason: str  # why it is pending: Priority, Resources, Dependency, BeginTime (requeued a moment ago), ...
    nodes: str
    array: str = ""  # the id of its array; of a job that is none, its own


@dataclass(frozen=True)
class Row:
    name: str
    state: str  # of the run folder: running, stopped, finished, failed; of Slurm: pending; or dead, done, not submitted
    step: int = 0
    steps: int = 0
    eta: float | None = None  # seconds
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None  # seconds
    goodput: float | None = None  # share of the device time that went into steps that count
    starts: int = 0
    job: str = ""
    note: str = ""  # nodes of a running job, reason of a pending one


def main() -> int:
    config = cli.parse(StatusConfig, prog="python -m jobs.status", description=DESCRIPTION)
    folders = config.folders or tuple(path for path in (Path("work/runs"), Path("work/campaigns")) if path.is_dir())
    rows = collect(folders, read_queue(), time.time())
    if not rows:
        raise UserError(
            f"FOLDER {', '.join(map(str, folders)) or 'work/runs'} holds neither a run nor a campaign: "
            "name a folder that --run-dir or slurm/submit_all.sh wrote to"
        )
    if config.json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row)))
    else:
        console = terminal.console(width=None if os.isatty(1) else 150)
        console.print(table(rows))
    return errors.EXIT_DONE


def collect(folders: Sequence[Path], queue: Mapping[str, QueuedJob], now: float) -> list[Row]:
    """A row for each stage of a campaign and each run, in the folders' order. Raises UserError for a missing folder."""
    rows: dict[Path, Row] = {}  # by the run's or the job's file, wherever it was reached from: it may be in two folders
    for folder in folders:
        check_local(folder, "FOLDER")
        if not folder.is_dir():
            raise UserError(
                f"FOLDER {str(folder)!r} does not exist or is no folder: name a run folder or a campaign's folder"
            )
        inside = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        for path in inside:
            for job in sorted(path.glob("*.job"), key=lambda file: file.stat().st_mtime):
                runs = [Path(line).resolve() for line in job.read_text().splitlines()[1:] if is_run(Path(line))]
                rows |= {run: _row(run, queue, now) for run in runs} or {job.resolve(): stage_row(job, queue)}
            if is_run(path):
                run = path.resolve()
                rows[run] = (run_row if path == folder else _row)(run, queue, now)
    return list(rows.values())


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / "slurm").is_dir()  # models of others have a config.json too


def stage_row(job_file: Path, queue: Mapping[str, QueuedJob]) -> Row:
    """A stage of a campaign that is no training run, or one that hasn't started.

    ``job_file``: the job's id, then a line for each folder that the stage makes.
    """
    job, *results = job_file.read_text().splitlines()
    name = f"{job_file.parent.name}/{job_file.stem}"
    tasks = [queued for queued_id, queued in queue.items() if job in (queued_id, queued.array)]
    if tasks:
        queued = next((task for task in tasks if task.state == "RUNNING"), tasks[0])  # it speaks for its array
        return Row(name, queued.state.lower(), job=job, note=_note(queued))
    done = job_file.with_suffix(".done").exists() or any((Path(path) / "dataset.json").exists() for path in results)
    return Row(name, "done" if done else "ended", job=job)


def _row(run: Path, queue: Mapping[str, QueuedJob], now: float) -> Row:
    """A damaged run's row says so, and hides no other run's."""
    try:
        return run_row(run, queue, now)
    except UserError as error:
        return Row(run.name, "damaged", note=str(error))


def run_row(run: Path, queue: Mapping[str, QueuedJob], now: float) -> Row:
    status, (job, starts) = read_status(run), _slurm_starts(run)
    queued = queue.get(job)
    record = records.read_record(run)
    lines, _ = records.read_lines(run / records.METRICS)
    kept = records.effective(lines, record.attempts if record else [])
    latest: dict[str, float] = {}
    for line in kept:
        latest |= line.metrics
    last = next(reversed(complete(run)), None)
    state = run_state(status, queued, alive=record is not None and records.alive(run, record.attempts[-1]))
    eta = None
    if status and state == "running" and "speed/step_seconds" in latest:
        eta = (status.steps - status.step) * latest["speed/step_seconds"]
    return Row(
        name=run.name,
        state=state,
        step=status.step if status else 0,
        steps=status.steps if status else 0,
        eta=eta,
        checkpoint_step=step_of(last) if last else None,
        checkpoint_age=now - (last / "meta.json").stat().st_mtime if last else None,
        goodput=latest.get("progress/goodput"),
        starts=max(starts, len(record.attempts) if record else 0),
        job=job,
        note=_note(queued) if queued else "",
    )


def run_state(status: Status | None, queued: QueuedJob | None, *, alive: bool) -> str:
    """What the run folder says, put right by what Slurm knows: a folder says "running" for ever if its node dies."""
    if status and status.state == "finished":
        return "finished"
    if queued and queued.state != "RUNNING":
        return queued.state.lower()
    if queued:
        return "running" if status and status.state == "running" else "starting"
    if status is None:
        return "dead" if not alive else "starting"
    if status.state == "running" and not alive:
        return "dead"
    return status.state


def read_queue() -> dict[str, QueuedJob]:
    """Slurm's queue by job id; the last task of an array has the array's. Empty without Slurm or its answer."""
    if not shutil.which("squeue"):
        return {}
    command = ["squeue", "--all", "--noheader", "--array", "--format=%A|%F|%T|%r|%N", "--states=all"]
    try:
        done = subprocess.run(
            command, env=squeue_environment(os.environ), encoding="utf-8", errors="replace", capture_output=True,
            timeout=60, check=True,
        )  # fmt: skip
        return parse_queue(done.stdout)
    except subprocess.CalledProcessError as error:
        if "configuration source" in error.stderr:  # Slurm's commands on a machine of no cluster
            return {}
        reason = f"squeue failed ({' '.join(error.stderr.split())})"
    except subprocess.TimeoutExpired:
        reason = "squeue gave no answer in 60 s"
    print(
        f"warning: {reason}: what follows is from the folders alone, and jobs that wait are not seen", file=sys.stderr
    )
    return {}


def squeue_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the filters and formats that a user's shell may set for squeue, as slurm/clean.sh has it.

    The cluster stays the one that sbatch submits to: ``SBATCH_CLUSTERS`` if set, else ``SLURM_CLUSTERS``.
    """
    cleaned = {
        name: value
        for name, value in environment.items()
        if not name.startswith("SQUEUE_") and name not in ("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_EXIT_ERROR")
    }
    if cluster := environment.get("SBATCH_CLUSTERS"):
        cleaned["SLURM_CLUSTERS"] = cluster
    return cleaned


def parse_queue(text: str) -> dict[str, QueuedJob]:
    queue: dict[str, QueuedJob] = {}
    for line in text.splitlines():
        job, array, state, reason, nodes = line.split("|")
        if state not in ENDED:
            state = "RUNNING" if state == "SIGNALING" else state  # its batch script is told of its time limit
            queue[job] = QueuedJob(state, reason, nodes, array)
    return queue


def _note(job: QueuedJob) -> str:
    return job.nodes if job.state == "RUNNING" else job.reason


def _slurm_starts(run: Path) -> tuple[str, int]:
    """The latest Slurm job of a run, and how often jobs have started it (slurm/launch.sh)."""
    path = run / "slurm" / "attempts.tsv"
    if not path.is_file():
        return "", 0
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    jobs = [row[1] for row in rows if row[0] == "start"]
    return (jobs[-1] if jobs else ""), len(jobs)


def table(rows: Sequence[Row]) -> Table:
    result = Table(title="Runs")
    for column in ("run", "state", "step", "ETA", "last checkpoint", "goodput", "starts", "job", "nodes | reason"):
        result.add_column(column, justify="right" if column in ("step", "ETA", "goodput", "starts") else "left")
    colours = {"finished": "green", "done": "green", "running": "cyan"}
    colours |= dict.fromkeys(("failed", "dead", "damaged"), "red")
    for row in rows:
        checkpoint = ""
        if row.checkpoint_step is not None and row.checkpoint_age is not None:
            checkpoint = f"step {row.checkpoint_step}, {duration(row.checkpoint_age)} ago"
        result.add_row(
            escape(row.name),
            f"[{colours.get(row.state, 'yellow')}]{row.state}[/]",
            f"{row.step:,}/{row.steps:,}" if row.steps else "",
            duration(row.eta) if row.eta is not None else "",
            checkpoint,
            f"{row.goodput:.1%}" if row.goodput is not None else "",
            str(row.starts or ""),
            row.job,
            escape(row.note),
        )
    return result


if __name__ == "__main__":
    cli.run(main)
