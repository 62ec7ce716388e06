"""Tracking a run: metrics go to the run folder at once, and from there to MLflow by a process of their own.

Training never waits for MLflow and never fails from it: this module doesn't even import it. ``pipeline.tracking.sync``
runs beside the training, follows the folder, and survives servers that are down, slow or broken; ``jobs.sync`` sends
what it could not.
"""

import dataclasses
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.runs import provenance, records
from pipeline.runs.folder import CODE, EVALUATIONS, METRICS, MLFLOW_LOG, RECORD
from pipeline.runs.records import Attempt, Line, Record
from pipeline.tracking.view import how_to_look

logger = logging.getLogger(__name__)

OFF = "VIT_MLFLOW"  # environment variable: "off" leaves everything to jobs.sync
PATIENCE = {"FINISHED": 120.0, "FAILED": 10.0, "KILLED": 10.0}  # seconds that close() waits for the last sync


class Tracker:
    """Of one attempt of a run, on rank 0 alone. Made by :func:`open_tracker`."""

    def __init__(
        self, run_dir: Path, record: Record, lines: Sequence[Line], *, devices: int, epoch_samples: int
    ) -> None:
        """``lines``: those of metrics.jsonl so far."""
        self.run_dir = run_dir
        self._record = record
        self._attempt = record.attempts[-1]
        self._devices = devices
        self._epoch_samples = epoch_samples
        self._file = records.Appender(run_dir / METRICS)
        self._spent = max((line.metrics.get("progress/device_hours", 0.0) for line in lines), default=0.0)
        self._useful = 0.0  # device-hours in steps that count
        if standing := records.effective(lines, record.attempts):
            metrics = standing[-1].metrics
            self._useful = metrics.get("progress/device_hours", 0.0) * metrics.get("progress/goodput", 0.0)
        self._step = self._attempt.start_step
        self._sync = None if os.environ.get(OFF) == "off" else _start_sync(run_dir)
        self._warned = False

    def log(self, step: int, samples: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl, with the run's progress added. Never raises, never waits for MLflow."""
        now = time.time()
        line = Line(step, samples, now, self._attempt.number, metrics | self._progress(step, samples, now, metrics))
        if not self._file.append(records.to_json(line)) and not self._warned:
            self._warned = True
            logger.warning(
                "%s can't be written (%s): its lines wait in memory until there is room again",
                self._file.path,
                self._file.fault,
            )
        elif self._warned and not self._file.waiting:
            self._warned = False
            logger.info("%s is written again, nothing is lost", self._file.path)

    def _progress(self, step: int, samples: int, now: float, metrics: dict[str, float]) -> dict[str, float]:
        """What any curve can be drawn against, beside the step.

        Goodput is the share of the device time since the run's first start that went into steps that count: not into
        starting, evaluation, checkpoints, or steps that a later attempt did again.
        """
        hours = self._spent + self._devices * (now - self._attempt.started) / 3600
        if "speed/step_seconds" in metrics:
            self._useful += self._devices * (step - self._step) * metrics["speed/step_seconds"] / 3600
            self._step = step
        progress = {
            "progress/samples": float(samples),
            "progress/device_hours": hours,
            "progress/goodput": min(1.0, self._useful / hours) if hours > 0 else 0.0,
        }
        if self._epoch_samples:
            progress["progress/epochs"] = samples / self._epoch_samples
        return progress

    def artifact(self, path: Path, folder: str = "") -> None:
        """Have a file (or a folder's files) copied to the run's artifacts."""
        entry = [_artifact(path, self.run_dir), folder]
        if entry not in self._record.artifacts:
            self._save(dataclasses.replace(self._record, artifacts=[*self._record.artifacts, entry]))

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the attempt and wait a bounded time for the last sync; what it didn't send, ``jobs.sync`` will."""
        self._attempt = dataclasses.replace(self._attempt, state=status, ended=time.time())
        self._save(dataclasses.replace(self._record, attempts=[*self._record.attempts[:-1], self._attempt]))
        self._file.close()
        if self._file.waiting:
            logger.error("%d line(s) of %s are lost: %s", len(self._file.waiting), self._file.path, self._file.fault)
        if self._sync is not None:
            _finish_sync(self._sync, self.run_dir, PATIENCE[status])

    def _save(self, record: Record) -> None:
        self._record = record
        try:
            records.write_record(self.run_dir, record)
        except OSError as error:
            logger.warning("%s can't be written: %s", self.run_dir / RECORD, error)


def open_tracker(
    run_dir: Path,
    *,
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    artifacts: Sequence[Path] = (),
    start_step: int = 0,
    devices: int = 1,
    epoch_samples: int = 0,
) -> Tracker:
    """Start tracking an attempt of the run in ``run_dir``, which goes on after ``start_step``. Rank 0 only.

    The run folder keeps the identity of the MLflow run, so that a resumed run goes on in the same one; lines of earlier
    attempts with a step above ``start_step`` are superseded and marked. ``devices`` (ranks) scales the device-hours,
    ``epoch_samples`` is the size of the training split.

    The MLflow server is ``MLFLOW_TRACKING_URI``, or the file ``mlflow.db`` beside the run folder.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    old = records.read_record(run_dir)
    lines, _ = records.read_lines(run_dir / METRICS)
    attempts = records.close_dead(old, lines).attempts if old else []
    attempt = Attempt(len(attempts) + 1, start_step, time.time(), os.getpid(), provenance.describe_place(devices))
    record = Record(
        key=old.key if old else uuid.uuid4().hex,
        experiment=experiment,
        name=name,
        params=params,
        tags=tags,
        artifacts=[[_artifact(path, run_dir), ""] for path in (*artifacts, run_dir / CODE, run_dir / EVALUATIONS)],
        attempts=[*attempts, attempt],
    )
    provenance.write_code(run_dir / CODE, attempt.number)
    records.write_record(run_dir, record)
    return Tracker(run_dir, record, lines, devices=devices, epoch_samples=epoch_samples)


def _artifact(path: Path, run_dir: Path) -> str:
    """As tracking.json names it: what lies in the run folder moves with that."""
    path, run_dir = path.absolute(), run_dir.absolute()
    return str(path.relative_to(run_dir) if path.is_relative_to(run_dir) else path)


def _start_sync(run_dir: Path) -> subprocess.Popen[bytes] | None:
    """A process, not a thread: importing and running MLflow would hold the interpreter's lock for seconds.

    In a session of its own: signals meant for the training (Ctrl-C, Slurm's) leave it time for the last sync.
    """
    command = [sys.executable, "-m", "pipeline.tracking.sync", str(run_dir.absolute()), "--follow"]
    try:
        with (run_dir / MLFLOW_LOG).open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        logger.warning("no MLflow sync (%s): run python -m jobs.sync %s later", error, run_dir)
        return None


def _finish_sync(sync: subprocess.Popen[bytes], run_dir: Path, patience: float) -> None:
    assert sync.stdin is not None
    try:
        sync.stdin.write(f"{patience}\n".encode())
        sync.stdin.close()
    except OSError:
        pass  # it has ended already; its exit code says how
    try:
        code = sync.wait(patience + 5.0)
    except subprocess.TimeoutExpired:
        sync.kill()
        code = sync.wait()
    if code != 0:
        logger.warning(
            "MLflow has not got everything of %s yet (see %s); it is safe in the run folder: python -m jobs.sync %s",
            run_dir,
            run_dir / MLFLOW_LOG,
            run_dir,
        )
    elif page := how_to_look(run_dir):
        logger.info("MLflow: %s", page)
