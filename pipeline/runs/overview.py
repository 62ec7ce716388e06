"""The state of every run and other job of a campaign, from their folders and Slurm's queue."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.runs import records
from pipeline.runs.folder import META, METRICS, SLURM_STARTS, Status, complete, is_run, read_status, step_of
from pipeline.runs.slurm_queue import QueuedJob, jobs_of


@dataclass(frozen=True)
class StatusRow:
    """One run, or one job of a campaign that is not a training run."""

    name: str
    state: (
        str  # from the run folder: running, stopped, finished, failed; from Slurm: pending; dead, done, not submitted
    )
    step: int = 0
    steps: int = 0
    eta: float | None = None  # seconds
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None  # seconds
    goodput: float | None = None  # share of the device time that went into steps that count
    starts: int = 0
    job: str = ""
    note: str = ""  # nodes (or the host) of a running one, reason of a pending one


def collect(folders: Sequence[Path], queue: Mapping[str, QueuedJob], now: float) -> list[StatusRow]:
    """One row per stage of a campaign and per run, in the folders' order. Raises UserError for a missing folder."""
    rows: dict[Path, StatusRow] = {}  # by the path of the run or job file, which may be found through two folders
    for folder in folders:
        check_local(folder, "FOLDER")
        if not folder.is_dir() and (waiting := jobs_of(folder.name, queue)):  # its first job is pending
            rows[folder.resolve()] = _queued_row(folder.name, waiting, running="starting")
            continue
        if not folder.is_dir():
            raise UserError(
                f"FOLDER {str(folder)!r} does not exist or is not a folder: name a run folder or a campaign's folder"
            )
        inside = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
        for path in inside:
            for job in sorted(path.glob("*.job"), key=lambda file: file.stat().st_mtime):
                runs = [
                    Path(line).resolve()
                    for line in job.read_text(encoding="utf-8").splitlines()[1:]
                    if is_run(Path(line))
                ]
                rows |= {run: _row(run, queue, now) for run in runs} or {job.resolve(): stage_row(job, queue)}
            if is_run(path):
                run = path.resolve()
                rows[run] = (run_row if path == folder else _row)(run, queue, now)
    if (
        any(folder.is_dir() and not is_run(folder) for folder in folders) or not folders
    ):  # not if a single run was named
        seen = {row.job for row in rows.values()}
        names = {job.run for job in queue.values() if job.run and job.array not in seen}
        names -= {run.name for run in rows}
        return [*rows.values(), *(_queued_row(name, jobs_of(name, queue), seen) for name in sorted(names))]
    return list(rows.values())


def _queued_row(
    name: str, jobs: Mapping[str, QueuedJob], seen: Collection[str] = (), *, running: str = "running"
) -> StatusRow:
    """A training job whose run folder doesn't exist yet, or is elsewhere; an array's tasks share one row.

    ``running``: the state of a job that Slurm has started.
    """
    job, queued = next((item for item in jobs.items() if item[1].array not in seen), next(iter(jobs.items())))
    state = running if queued.state == "RUNNING" else queued.state.lower()
    return StatusRow(name, state, job=queued.array or job, note=_note(queued))


def stage_row(job_file: Path, queue: Mapping[str, QueuedJob]) -> StatusRow:
    """A stage of a campaign that is not a training run, or that hasn't started.

    ``job_file``: the job's id, then one line per folder that the stage writes.
    """
    job, *results = job_file.read_text(encoding="utf-8").splitlines()
    name = f"{job_file.parent.name}/{job_file.stem}"
    tasks = [queued for queued_id, queued in queue.items() if job in (queued_id, queued.array)]
    if tasks:
        queued = next((task for task in tasks if task.state == "RUNNING"), tasks[0])  # represents its array
        return StatusRow(name, queued.state.lower(), job=job, note=_note(queued))
    done = job_file.with_suffix(".done").exists() or any((Path(path) / "dataset.json").exists() for path in results)
    return StatusRow(name, "done" if done else "ended", job=job)


def _row(run: Path, queue: Mapping[str, QueuedJob], now: float) -> StatusRow:
    """The run's row. A damaged run gets a row with the error, so that the other runs are still shown."""
    try:
        return run_row(run, queue, now)
    except UserError as error:
        return StatusRow(run.name, "damaged", note=str(error))


def run_row(run: Path, queue: Mapping[str, QueuedJob], now: float) -> StatusRow:
    status, (job, starts) = read_status(run), slurm_starts(run)
    queued = queue.get(job)
    if queued is None and (later := jobs_of(run.name, queue)):  # submitted again, not started yet
        job, queued = next(iter(later.items()))
    record = records.read_record(run)
    lines, _ = records.read_lines(run / METRICS)
    kept = records.effective(lines, record.attempts if record else [])
    latest: dict[str, float] = {}
    for line in kept:
        latest |= line.metrics
    last = next(reversed(complete(run)), None)
    state = run_state(status, queued, alive=record is not None and records.alive(run, record.attempts[-1]))
    eta = None
    if status and state == "running" and "speed/step_seconds" in latest:
        eta = (status.steps - status.step) * latest["speed/step_seconds"]
    fewer = status.fewer_nodes if status and state == "running" else ""
    return StatusRow(
        name=run.name,
        state=state,
        step=status.step if status else 0,
        steps=status.steps if status else 0,
        eta=eta,
        checkpoint_step=step_of(last) if last else None,
        checkpoint_age=now - (last / META).stat().st_mtime if last else None,
        goodput=latest.get("progress/goodput"),
        starts=max(starts, len(record.attempts) if record else 0),
        job=job,
        note=_where(record, queued, fewer) if state == "running" else _note(queued) if queued else "",
    )


def run_state(status: Status | None, queued: QueuedJob | None, *, alive: bool) -> str:
    """The state in the run folder, corrected by Slurm: a folder's state stays "running" if its node dies."""
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


def _where(record: records.Record | None, job: QueuedJob | None, fewer: str) -> str:
    """The nodes of a run's latest attempt: "node[1-8] of node[1-9]" if its job has spare or lost nodes."""
    place = record.attempts[-1].place if record else {}
    own = place.get("nodes") or (job.nodes if job else place.get("host", ""))
    nodes = f"{own} of {job.nodes}" if job and job.nodes not in ("", own) else own
    return f"{nodes}, {fewer}" if fewer else nodes


def _note(job: QueuedJob) -> str:
    return job.nodes if job.state == "RUNNING" else job.reason


def slurm_starts(run: Path) -> tuple[str, int]:
    """The latest Slurm job of a run, and how often jobs have started it (slurm/launch.sh)."""
    path = run / SLURM_STARTS
    if not path.is_file():
        return "", 0
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    jobs = [row[1] for row in rows if row[0] == "start"]
    return (jobs[-1] if jobs else ""), len(jobs)
