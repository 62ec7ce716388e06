"""The run folder's tracking records, of which MLflow gets a copy. Imports neither torch nor mlflow.

- ``metrics.jsonl``: one JSON object per line: step, samples, time (unix seconds), attempt, and metrics by name.
- ``tracking.json``: :class:`Record`: what MLflow gets besides metrics, and the state of each attempt.

Numbers that JSON lacks are written as strings: "nan", "inf", "-inf".
"""

import dataclasses
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.runs.folder import LEDGER, METRICS, RECORD, STATUS, SYSTEM

SILENCE = 300.0  # seconds without a write after which a run on another host counts as dead
# ledger.txt grows with each step, system/ twice per minute; status.json is written per save
SIGNS = (METRICS, LEDGER, STATUS)

State = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]  # MLflow's names


@dataclass(frozen=True)
class Line:
    """One line of metrics.jsonl."""

    step: int
    samples: int  # training samples seen by the end of the step
    time: float  # unix seconds
    attempt: int  # 1 is the run's first start
    metrics: dict[str, float]


@dataclass(frozen=True)
class Attempt:
    """One start of the run."""

    number: int
    start_step: int  # the attempt continues after this step
    started: float  # unix seconds
    pid: int
    place: dict[str, str]  # host, Slurm job, nodes, devices
    state: State = "RUNNING"
    ended: float = 0.0  # unix seconds


@dataclass(frozen=True)
class Record:
    """tracking.json."""

    key: str  # random; identifies the run on any MLflow server
    experiment: str
    name: str
    params: dict[str, Any]
    tags: dict[str, str]
    artifacts: list[list[str]] = field(
        default_factory=list
    )  # [path, folder]; paths in the run folder are relative to it
    attempts: list[Attempt] = field(default_factory=list)


def read_record(run_dir: Path) -> Record | None:
    path = run_dir / RECORD
    if not path.is_file():
        return None
    tree = read_json(path)
    try:
        attempts = [Attempt(**attempt) for attempt in tree.pop("attempts")]
        return Record(**tree, attempts=attempts)
    except (KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): put back a copy of it") from error


def write_record(run_dir: Path, record: Record) -> None:
    write_json(run_dir / RECORD, dataclasses.asdict(record))


def to_json(line: Line) -> bytes:
    """The line as JSON, including the newline."""
    head = {"step": line.step, "samples": line.samples, "time": round(line.time, 3), "attempt": line.attempt}
    values = {name: value if math.isfinite(value) else str(value) for name, value in line.metrics.items()}
    return (json.dumps(head | values) + "\n").encode()


def from_json(text: bytes) -> Line:
    tree = json.loads(text)
    head = {name: tree.pop(name) for name in ("step", "samples", "time", "attempt")}
    return Line(**head, metrics={name: float(value) for name, value in tree.items()})


def read_lines(path: Path, offset: int = 0) -> tuple[list[Line], int]:
    """The complete lines from ``offset`` (bytes) on, and the offset after them. A partly written line is not read.

    Raises UserError if a complete line is not a :class:`Line`, as after a power cut on some file systems.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content.rfind(b"\n") + 1
    lines, at = [], offset
    for text in content[:whole].split(b"\n")[:-1]:
        try:
            lines.append(from_json(text))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path} is damaged at byte {at}: delete that line, or put back a copy of the file"
            ) from None
        at += len(text) + 1
    return lines, offset + whole


def last_steps(attempts: Iterable[Attempt]) -> dict[int, float]:
    """By attempt, the last step that counts: a later attempt has repeated the steps above it (or will)."""
    limits: dict[int, float] = {}
    limit = math.inf
    for attempt in sorted(attempts, key=lambda attempt: attempt.number, reverse=True):
        limits[attempt.number] = limit
        limit = min(limit, attempt.start_step)
    return limits


def effective(lines: Iterable[Line], attempts: Iterable[Attempt]) -> list[Line]:
    """The lines that count: the last line of each step."""
    limits = last_steps(attempts)
    return [line for line in lines if line.step <= limits.get(line.attempt, math.inf)]


class Appender:
    """Appends complete lines to a file. If the disk is full they wait in memory, and are written first later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[bytes] = []
        self.fault = ""  # why lines wait
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._end = _whole_lines(self._file)
        os.ftruncate(self._file, self._end)  # a partial line from a crash was never acknowledged

    def append(self, line: bytes) -> bool:
        """Append a line; returns False if it has to wait."""
        self.waiting.append(line)
        return self.flush()

    def flush(self) -> bool:
        try:
            while self.waiting:
                written = os.pwrite(self._file, self.waiting[0], self._end)
                if written < len(self.waiting[0]):
                    os.ftruncate(self._file, self._end)
                    raise OSError("only part of a line could be written: the disk is full")
                self._end += written
                del self.waiting[0]
        except OSError as error:
            self.fault = str(error)
            return False
        self.fault = ""
        return True

    def close(self) -> None:
        self.flush()
        os.close(self._file)


def _whole_lines(descriptor: int) -> int:
    """Size of the file up to its last newline, bytes."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def alive(run_dir: Path, attempt: Attempt) -> bool:
    """Whether the attempt is still running: judged by its process on this host, by its files on another host."""
    if attempt.state != "RUNNING":
        return False
    if attempt.place.get("host") == socket.gethostname():
        try:
            return bool(psutil.Process(attempt.pid).create_time() <= attempt.started)
        except psutil.NoSuchProcess:
            return False
    paths = [*(run_dir / name for name in SIGNS), *(run_dir / SYSTEM).glob("*.jsonl")]
    stamps = [path.stat().st_mtime for path in paths if path.is_file()]
    return time.time() - max(stamps, default=attempt.started) < SILENCE


def close_dead(record: Record, lines: Sequence[Line]) -> Record:
    """``record`` with attempts that died without recording their end marked FAILED at the time of their last line.

    ``lines``: from metrics.jsonl.
    """
    attempts = []
    for attempt in record.attempts:
        last = max((line.time for line in lines if line.attempt == attempt.number), default=attempt.started)
        running = attempt.state == "RUNNING"
        attempts.append(dataclasses.replace(attempt, state="FAILED", ended=last) if running else attempt)
    return dataclasses.replace(record, attempts=attempts)
