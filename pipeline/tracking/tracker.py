"""Tracking a run: metrics are written to the run folder at once, and a separate process sends them to MLflow.

Training never waits for MLflow and never fails because of it: this module doesn't import it. ``pipeline.tracking.sync``
runs during training, follows the folder, and copes with servers that are down, slow or broken; ``jobs.sync`` sends
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

from pipeline.runs import goodput, provenance, records
from pipeline.runs.folder import CODE, EVALUATIONS, METRICS, MLFLOW_LOG, RECORD
from pipeline.runs.records import Attempt, Line, Record
from pipeline.tracking.view import how_to_look

logger = logging.getLogger(__name__)

OFF = "VIT_MLFLOW"  # environment variable: "off" sends nothing; jobs.sync can do it later
PATIENCE = {"FINISHED": 120.0, "FAILED": 10.0, "KILLED": 10.0}  # seconds that close() waits for the last sync


class Tracker:
    """Tracks one attempt of a run, on rank 0 only. Created by :func:`open_tracker`."""

    def __init__(
        self,
        run_dir: Path,
        record: Record,
        lines: Sequence[Line],
        *,
        devices: int,
        spare_devices: int,
        epoch_samples: int,
    ) -> None:
        """``lines``: the existing lines of metrics.jsonl."""
        self.run_dir = run_dir
        self._record = record
        self._attempt = record.attempts[-1]
        self._devices, self._spares = devices, spare_devices
        self._epoch_samples = epoch_samples
        self._file = records.Appender(run_dir / METRICS)
        self._spent = max((line.metrics.get("progress/device_hours", 0.0) for line in lines), default=0.0)
        self._idle = max((line.metrics.get("progress/idle_device_hours", 0.0) for line in lines), default=0.0)
        self._idle += (devices + spare_devices) * goodput.restart_seconds(lines, record.attempts) / 3600
        self._useful = 0.0  # device-hours spent on steps that count
        if standing := records.effective(lines, record.attempts):
            metrics = standing[-1].metrics
            hours = metrics.get("progress/device_hours", 0.0) + metrics.get("progress/idle_device_hours", 0.0)
            self._useful = hours * metrics.get("progress/goodput", 0.0)
        self._restarts, self._lost = len(record.attempts) - 1, goodput.lost_steps(lines, record.attempts)
        self._step = self._attempt.start_step
        self._sync = None if os.environ.get(OFF) == "off" else _start_sync(run_dir)
        self._warned = False

    def log(self, step: int, samples: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and add the run's progress. Never raises, never waits for MLflow."""
        now = time.time()
        line = Line(step, samples, now, self._attempt.number, metrics | self._progress(step, samples, now, metrics))
        if not self._file.append(records.to_json(line)) and not self._warned:
            self._warned = True
            logger.warning(
                "%s can't be written (%s): its lines are kept in memory until there is room",
                self._file.path,
                self._file.fault,
            )
        elif self._warned and not self._file.waiting:
            self._warned = False
            logger.info("%s can be written again, nothing was lost", self._file.path)

    def _progress(self, step: int, samples: int, now: float, metrics: dict[str, float]) -> dict[str, float]:
        """The x values for curves, besides the step.

        Goodput is the share of the device time since the run's first start that was spent on steps that count, not on
        startup, evaluation, checkpoints, or steps that a later attempt repeated; nor is it that of spare nodes, or
        between two attempts in one Slurm job (idle_device_hours).
        """
        elapsed = (now - self._attempt.started) / 3600
        hours, idle = self._spent + self._devices * elapsed, self._idle + self._spares * elapsed
        if "speed/step_seconds" in metrics:
            self._useful += self._devices * (step - self._step) * metrics["speed/step_seconds"] / 3600
            self._step = step
        progress = {
            "progress/samples": float(samples),
            "progress/device_hours": hours,
            "progress/goodput": min(1.0, self._useful / (hours + idle)) if hours > 0 else 0.0,
        }
        if self._restarts:
            progress |= {"progress/restarts": float(self._restarts), "progress/lost_steps": float(self._lost)}
        if idle:
            progress["progress/idle_device_hours"] = idle
        if self._epoch_samples:
            progress["progress/epochs"] = samples / self._epoch_samples
        return progress

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file (or a folder's files) to the run's artifacts."""
        entry = [_artifact(path, self.run_dir), folder]
        if entry not in self._record.artifacts:
            self._save(dataclasses.replace(self._record, artifacts=[*self._record.artifacts, entry]))

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the attempt and wait a limited time for the last sync; ``jobs.sync`` can send what it did not."""
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
    spare_devices: int = 0,
    epoch_samples: int = 0,
) -> Tracker:
    """Start tracking an attempt of the run in ``run_dir``, which continues after ``start_step``. Rank 0 only.

    The run folder keeps the identity of the MLflow run, so that a resumed run continues in the same one; earlier
    attempts' lines with a step above ``start_step`` are superseded and marked. ``devices`` (number of ranks) scales the
    device-hours, ``spare_devices`` are those of the job's other nodes, ``epoch_samples`` is the size of the training
    split.

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
    return Tracker(run_dir, record, lines, devices=devices, spare_devices=spare_devices, epoch_samples=epoch_samples)


def _artifact(path: Path, run_dir: Path) -> str:
    """The path for tracking.json: relative if it is in the run folder, which may be moved."""
    path, run_dir = path.absolute(), run_dir.absolute()
    return str(path.relative_to(run_dir) if path.is_relative_to(run_dir) else path)


def _start_sync(run_dir: Path) -> subprocess.Popen[bytes] | None:
    """Start the sync process; a thread would hold the interpreter's lock for seconds while it imports and runs MLflow.

    It has its own session, so that signals for training (Ctrl-C, Slurm's) leave it time for the last sync.
    """
    command = [sys.executable, "-m", "pipeline.tracking.sync", str(run_dir.absolute()), "--follow"]
    try:
        with (run_dir / MLFLOW_LOG).open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        logger.warning("no MLflow sync (%s): run vit sync %s later", error, run_dir)
        return None


def _finish_sync(sync: subprocess.Popen[bytes], run_dir: Path, patience: float) -> None:
    assert sync.stdin is not None
    try:
        sync.stdin.write(f"{patience}\n".encode())
        sync.stdin.close()
    except OSError:
        pass  # it has ended already; see its exit code
    try:
        code = sync.wait(patience + 5.0)
    except subprocess.TimeoutExpired:
        sync.kill()
        code = sync.wait()
    if code != 0:
        logger.warning(
            "MLflow does not have everything from %s yet (see %s); the run folder does: run vit sync %s",
            run_dir,
            run_dir / MLFLOW_LOG,
            run_dir,
        )
    elif page := how_to_look(run_dir):
        logger.info("MLflow: %s", page)
