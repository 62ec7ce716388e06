"""python -m pipeline.tracking.sync RUN [--follow]: copy a run folder's tracking to MLflow, each value exactly once.

Idempotent: MLflow stores a value once for each (run, name, step, timestamp, value), so sending a line again after a
crash or a lost response changes nothing. The run is identified by the key in tracking.json. ``RUN/mlflow.json`` records
what has been sent, only to save work. With ``--follow`` it runs during training, started by pipeline.tracking.tracker.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.secrets import without_secrets
from pipeline.core.terminal import escape_output
from pipeline.runs import records
from pipeline.runs.folder import CURVES, EVALUATION_LINES, METRICS, MLFLOW, RECORD, SYSTEM
from pipeline.runs.records import Line, Record
from pipeline.runs.sweep_record import is_sweep
from pipeline.tracking import description as describe
from pipeline.tracking.artifacts import send_artifacts
from pipeline.tracking.client import check_writable, open_client, quiet_environment, reason, tracking_uri
from pipeline.tracking.points import points
from pipeline.tracking.sent import Sent, lock_in_time, locked, read_sent, save_sent
from pipeline.tracking.view import EXPERIMENT_TAGS, VIEW_TAG

KEY_TAG = "run_key"
INTERVAL = 5.0  # seconds between two passes during training
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts while the server fails
BATCH = 1000  # values per call: MLflow's limit (MAX_METRICS_PER_BATCH)
SENT_FILES = (METRICS, EVALUATION_LINES)  # files of lines
PARAMS = 100  # parameters or tags per call: MLflow's limit


def sync(run_dir: Path, *, died: bool = False, ask: bool = True) -> int:
    """Send everything that MLflow lacks, once. Returns the number of values sent; raises what MLflow raises.

    ``died``: the last attempt is known to be dead without having recorded its end. ``ask``: check that the server
    still has the run in mlflow.json; if it lost the run, everything is sent to a new one.
    """
    record = records.read_record(run_dir)
    if record is None:
        raise UserError(f"{str(run_dir)!r} has no {RECORD}: it is not a run folder, or its training never started")
    uri = tracking_uri(run_dir)
    check_writable(uri)
    client = open_client(uri)
    sent = read_sent(run_dir)
    new = sent is None or sent.uri != without_secrets(uri) or (ask and not _is_there(client, run_dir, sent))
    _sync_sweep(record, uri, new=new)
    if sent is None or new:
        sent = _find_or_create(client, run_dir, record, uri)
        save_sent(run_dir, sent)
    if sent.closed and sent.closed < record.attempts[-1].number:
        client.update_run(sent.run_id, status="RUNNING")
        sent.closed = 0
    count = sum(_send_lines(client, run_dir, record, sent, name) for name in SENT_FILES)
    for path in sorted((run_dir / SYSTEM).glob("*.jsonl")):
        with contextlib.suppress(UserError):  # damaged as its node lost power: worth less than what follows
            count += _send_lines(client, run_dir, record, sent, f"{SYSTEM}/{path.name}")
    state = "FAILED" if died else record.attempts[-1].state
    if (
        _describe(client, run_dir, record, sent) and state == "RUNNING"
    ):  # at startup, and when there is a new checkpoint
        _illustrate(client, run_dir, record, sent, state)
    send_artifacts(client, run_dir, record, sent)
    if state != "RUNNING" and sent.closed != record.attempts[-1].number:
        _close(client, run_dir, record, sent, state)
    return count


def _sync_sweep(record: Record, uri: str, *, new: bool) -> None:
    """Send the sweep that a run belongs to, if this server doesn't have it yet: the run is shown under it.

    ``new``: the server doesn't have the run either, as after its database was lost; the sweep's mlflow.json is ignored.
    """
    folder = Path(record.tags.get("sweep_dir", ""))
    if "sweep_dir" not in record.tags or not (folder / RECORD).is_file():
        return
    sent = read_sent(folder)
    if new or sent is None or sent.uri != without_secrets(uri):
        with locked(folder) as mine:
            if mine:
                sync(folder)


def _is_there(client: Any, run_dir: Path, sent: Sent) -> bool:
    """Whether the server has the run; False after its database was lost. Raises UserError if the run is deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(sent.run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    _refuse_deleted(experiment, sent.uri)
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"MLflow run {sent.run_id} at {sent.uri} is deleted: restore it (mlflow runs restore --run-id "
            f"{sent.run_id}), or delete {str(run_dir / MLFLOW)!r} to send everything to a new one"
        )
    return True


def _refuse_deleted(experiment: Any, uri: str) -> None:
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"MLflow experiment {experiment.name!r} at {without_secrets(uri)} is deleted: restore it (mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}), or train with another --experiment"
        )


def _find_or_create(client: Any, run_dir: Path, record: Record, uri: str) -> Sent:
    experiment = client.get_experiment_by_name(record.experiment)
    if experiment is None:
        location = None
        if uri.startswith("sqlite:"):  # MLflow's default depends on the current folder
            location = (run_dir.absolute().parent / "mlartifacts" / record.key[:8]).as_uri()
        experiment_id = client.create_experiment(record.experiment, artifact_location=location, tags=EXPERIMENT_TAGS)
    else:
        _refuse_deleted(experiment, uri)
        experiment_id = experiment.experiment_id
        if VIEW_TAG not in experiment.tags:  # created by hand, or by another program
            client.set_experiment_tag(experiment_id, VIEW_TAG, EXPERIMENT_TAGS[VIEW_TAG])
    found = client.search_runs([experiment_id], filter_string=f"tags.{KEY_TAG} = '{record.key}'", max_results=1)
    run = found[0] if found else None
    if run is None:
        run = client.create_run(
            experiment_id,
            start_time=round(record.attempts[0].started * 1000),
            tags={KEY_TAG: record.key},
            run_name=record.name,
        )
    return Sent(without_secrets(uri), run.info.run_id, experiment_id)


def _send_lines(client: Any, run_dir: Path, record: Record, sent: Sent, name: str) -> int:
    from mlflow.entities import Metric

    offset = sent.offsets.get(name, 0)
    lines, end = records.read_lines(run_dir / name, offset)
    if not lines:
        return 0
    resumed = name == METRICS and len(record.attempts) > 1
    values = points(lines, _done_again(run_dir / name, record) if resumed else [])
    for start in range(0, len(values), BATCH):
        client.log_batch(
            sent.run_id,
            metrics=[
                Metric(value.name, value.value, value.milliseconds, value.step)
                for value in values[start : start + BATCH]
            ],
        )
    sent.offsets[name] = end
    save_sent(run_dir, sent)
    return len(values)


def _done_again(path: Path, record: Record) -> list[records.Line]:
    limits = records.last_steps(record.attempts)
    return [line for line in records.read_lines(path)[0] if line.step > limits.get(line.attempt, float("inf"))]


def _describe(client: Any, run_dir: Path, record: Record, sent: Sent) -> bool:
    """Send parameters, tags and datasets if they changed; returns whether they did."""
    from mlflow.entities import Param, RunTag

    wanted = describe.of_run(run_dir, record, sent.uri)
    if wanted.digest() == sent.described:
        return False
    known = client.get_run(sent.run_id).data.params
    params = [Param(name, value) for name, value in wanted.params.items() if name not in known]
    for start in range(0, len(params), PARAMS):
        client.log_batch(sent.run_id, params=params[start : start + PARAMS])
    tags = [RunTag(name, value) for name, value in wanted.tags.items()]
    # MLflow's parameters are immutable: what a resumed run changed (for example workers) becomes a tag.
    tags += [
        RunTag(f"changed.{name}", f"{known[name]} -> {value}")
        for name, value in wanted.params.items()
        if name in known and known[name] != value
    ]
    for start in range(0, len(tags), PARAMS):
        client.log_batch(sent.run_id, tags=tags[start : start + PARAMS])
    if wanted.datasets:
        client.log_inputs(sent.run_id, datasets=describe.dataset_inputs(wanted.datasets))
    sent.described = wanted.digest()
    save_sent(run_dir, sent)
    return True


def _illustrate(client: Any, run_dir: Path, record: Record, sent: Sent, state: str) -> list[Line]:
    """Send the description with the current curves; returns the lines that count."""
    from pipeline.runs.curves import draw_run  # matplotlib

    lines = records.effective(records.read_lines(run_dir / METRICS)[0], record.attempts)
    if lines and not is_sweep(run_dir):  # a sweep's lines don't form a curve
        draw_run(lines, run_dir / CURVES)
        client.log_artifact(sent.run_id, str(run_dir / CURVES))
    client.set_tag(sent.run_id, "mlflow.note.content", describe.note(run_dir, record, lines, sent.run_id, state))
    return lines


def _close(client: Any, run_dir: Path, record: Record, sent: Sent, state: str) -> None:
    last = record.attempts[-1]
    lines = _illustrate(client, run_dir, record, sent, state)
    if state == "FINISHED" and not sent.model_id:
        from pipeline.tracking.registry import log_model  # torch

        sent.model_id = log_model(run_dir, record, lines, sent.run_id, tracking_uri(run_dir)) or "none"
        save_sent(run_dir, sent)
    end = last.ended or max((line.time for line in lines), default=last.started)
    client.set_terminated(sent.run_id, status=state, end_time=round(end * 1000))
    sent.closed = last.number
    save_sent(run_dir, sent)


def follow(run_dir: Path, say: Callable[[str], None]) -> int:
    """Sync until training announces its end (a line on stdin: seconds left) or has died. Returns the exit code."""
    parent = os.getppid()
    deadline, died, pause, problem, refused = float("inf"), False, INTERVAL, "not yet", False
    backoff = retry.Backoff(FIRST_PAUSE, LONGEST_PAUSE)
    due = time.monotonic()
    with lock_in_time(run_dir):
        while True:
            if time.monotonic() >= due:
                try:
                    count = sync(run_dir, died=died, ask=bool(problem))
                    if problem:
                        say(f"MLflow is up to date ({count} values sent)")
                    problem, pause, refused = "", INTERVAL, False
                    backoff.reset()
                except Exception as error:  # the metrics are safe in the run folder: retry after any error
                    text = reason(error)
                    if text != problem:
                        say(f"not sent to MLflow, retrying: {text}")
                    problem, pause = text, backoff.next() or LONGEST_PAUSE
                    refused = isinstance(error, UserError)  # needs a user's action: don't wait for it at the end
                due = time.monotonic() + pause
                if deadline < float("inf") and (not problem or refused or time.monotonic() > deadline):
                    return 1 if problem else 0
            ready, _, _ = select.select([sys.stdin] if deadline == float("inf") else [], [], [], min(1.0, pause))
            if deadline == float("inf"):
                words = sys.stdin.readline().split() if ready else []
                died = not words and (bool(ready) or os.getppid() != parent)
                if words or died:
                    patience = float(words[0]) if words else 30.0
                    deadline, due = time.monotonic() + patience, time.monotonic()
                    signal.alarm(int(patience) + 10)  # a hanging call must not keep this process alive
            else:
                due = min(due, time.monotonic() + 1.0)


def main() -> int:
    run_dir = Path(sys.argv[1])
    escape_output()
    quiet_environment()

    def say(text: str) -> None:
        with contextlib.suppress(OSError):  # the run's disk may be full
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)

    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGUSR1,
    ):  # they are meant for training, which tells us its end
        signal.signal(number, signal.SIG_IGN)
    return follow(run_dir, say)


if __name__ == "__main__":
    sys.exit(main())
