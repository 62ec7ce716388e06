"""The sync against a real MLflow server that is down, killed, slow, broken: what it has in the end is the run folder's.

Values are compared one by one: name, step, millisecond and value.
"""

import base64
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.runs import records
from pipeline.runs.folder import METRICS, MLFLOW
from pipeline.tracking import client as mlflow_client
from pipeline.tracking import sync as mlflow_sync
from pipeline.tracking.sent import read_sent
from tests.helpers.mlflow_runs import in_folder, jobs_sync, log_of, on_server, only_run, program, shown
from tests.helpers.mlflow_server import Proxy, Server
from tests.helpers.waiting import wait_until

# SQLAlchemy's, of MLflow's own tables
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def run_program(run_dir: Path, *options: object, uri: str, **environment: str) -> str:
    with program(run_dir, *options, uri=uri, **environment) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def assert_same(server: Server, run_dir: Path, state: str = "FINISHED") -> Any:
    client = MlflowClient(server.uri)
    run = only_run(client, run_dir)
    assert on_server(client, run.info.run_id) == in_folder(run_dir)
    assert run.info.status == state
    return run


def test_a_good_server_has_everything_when_the_run_ends(server: Server, run_dir: Path) -> None:
    run_program(run_dir, "--steps", 400, uri=server.uri)  # 2,400 values: three batches
    run = assert_same(server, run_dir)
    assert run.data.params["optim.lr"] == "0.1"
    assert run.data.tags["team"] == "vision"
    assert run.info.run_name == run_dir.name
    client = MlflowClient(server.uri)
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"config.json", "curves.png", "code"}
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**finished** · step 400 · 3,200 samples · training loss **")
    assert f"run_uuid={run.info.run_id}" in note


MODES = [("500", "500"), ("wrong", ""), ("lost", "Connection"), ("down", "")]  # what mlflow.log says, if it is new


@pytest.mark.parametrize(
    "modes", [pytest.param(MODES[:1], id="500"), pytest.param(MODES, id="all", marks=pytest.mark.soak)]
)
def test_a_broken_server_costs_training_nothing_and_gets_everything_later(
    server: Server, proxy: Proxy, run_dir: Path, modes: list[tuple[str, str]]
) -> None:
    proxy.mode = modes[0][0]
    with program(run_dir, "--steps", 50, "--until", "never", "--end", "FAILED", uri=proxy.uri) as process:
        for mode, words in modes:
            length, proxy.mode, calls = len(log_of(run_dir)), mode, proxy.calls
            wait_until(lambda: proxy.calls > calls and words in log_of(run_dir)[length:])  # noqa: B023
        with (run_dir / "mlflow.log").open("a") as log:
            log.write("never\n")  # what the program waits for
        output, _ = process.communicate(timeout=200)
    slowest = float(output.split("slowest log ")[1].split()[0])
    assert slowest < 1  # seconds: no call waited for the server
    assert f"run vit sync {run_dir}" in output
    proxy.mode = "pass"
    for _ in range(2):  # the second changes nothing
        assert "failed" in jobs_sync(run_dir, uri=proxy.uri)
        assert_same(server, run_dir, "FAILED")


@pytest.mark.soak
def test_down_at_the_start_and_there_later(server: Server, proxy: Proxy, run_dir: Path) -> None:
    proxy.mode = "down"
    with program(run_dir, "--steps", 60, "--pause", 0.2, uri=proxy.uri) as process:
        wait_until(lambda: proxy.calls >= 1)
        proxy.mode = "pass"
        process.communicate(timeout=200)
        assert process.returncode == 0
    assert_same(server, run_dir)


@pytest.mark.parametrize("delay", [2.0, pytest.param(5.0, marks=pytest.mark.soak)])
def test_a_slow_server_delays_nothing(server: Server, proxy: Proxy, run_dir: Path, delay: float) -> None:
    proxy.mode, proxy.delay = "slow", delay
    with program(run_dir, "--steps", 200, "--pause", 0.05 if delay > 2 else 0.03, uri=proxy.uri) as process:
        assert process.stdout is not None
        output = ""
        while "slowest log" not in output and (line := process.stdout.readline()):
            output += line
        proxy.delay = min(delay / 6, 0.3)  # for what is sent at the end
        output += process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
    mean, slowest = (float(output.split(f"{kind} log ")[1].split()[0].rstrip(",")) for kind in ("mean", "slowest"))
    assert slowest < delay / 2  # seconds
    assert mean < delay / 20
    if "vit sync" in output:  # it ended before everything was there
        jobs_sync(run_dir, uri=proxy.uri)
    assert proxy.calls > 10
    assert_same(server, run_dir)


def test_answers_lost_after_the_server_has_stored_them_double_nothing(
    server: Server, proxy: Proxy, run_dir: Path
) -> None:
    with program(run_dir, "--steps", 120, "--pause", 0.05, uri=proxy.uri) as process:
        wait_until((run_dir / MLFLOW).exists)
        proxy.mode = "lost"
        calls = proxy.calls
        wait_until(lambda: proxy.calls > calls + 1)
        proxy.mode = "pass"
        process.communicate(timeout=200)
    assert_same(server, run_dir)


def test_kill_9_of_the_server_in_the_middle(server: Server, run_dir: Path) -> None:
    with program(run_dir, "--steps", 100, "--pause", 0.1, uri=server.uri) as process:
        wait_until((run_dir / MLFLOW).exists)
        server.kill()
        time.sleep(6)  # longer than the pause between two passes
        server.start()
        process.communicate(timeout=200)
        assert process.returncode == 0
    assert_same(server, run_dir)


def test_kill_9_of_the_training_closes_the_run_as_failed(server: Server, run_dir: Path) -> None:
    with program(run_dir, "--steps", 100, "--end", "HANG", uri=server.uri) as process:
        assert process.stdout is not None
        while "slowest log" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: (sent := read_sent(run_dir)) is not None and sent.closed == 1)
    assert_same(server, run_dir, "FAILED")


def test_training_and_sync_killed_at_once_are_closed_by_jobs_sync(server: Server, run_dir: Path) -> None:
    with program(run_dir, "--steps", 30, "--end", "HANG", uri=server.uri, VIT_MLFLOW="off") as process:
        assert process.stdout is not None
        while "slowest log" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGKILL)
    assert "failed (it died)" in jobs_sync(run_dir, uri=server.uri)
    assert_same(server, run_dir, "FAILED")


def test_a_requeued_run_goes_on_in_the_same_mlflow_run_and_steps_done_again_are_marked(
    server: Server, run_dir: Path
) -> None:
    run_program(run_dir, "--steps", 30, "--end", "KILLED", uri=server.uri)
    assert_same(server, run_dir, "KILLED")
    client = MlflowClient(server.uri)
    client.update_run(only_run(client, run_dir).info.run_id, name="by hand")
    run_program(run_dir, "--start", 20, "--steps", 40, "--drift", 0.5, uri=server.uri)
    run = only_run(client, run_dir)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "by hand"
    assert run.data.tags["attempts"] == "2"
    assert "superseded after step 20" in run.data.tags["attempt.1"]
    assert "from step 20" in run.data.tags["attempt.2"]
    # what counts in the folder is what MLflow shows at each step: the value with the latest time
    record = records.read_record(run_dir)
    assert record is not None
    lines = records.effective(records.read_lines(run_dir / METRICS)[0], record.attempts)
    assert [line.step for line in lines] == list(range(1, 41))
    for name in ("train/loss", "train/norm", "train/odd", "progress/samples"):
        latest: dict[int, Any] = {}
        history = client.get_metric_history(run.info.run_id, name)
        for point in sorted(history, key=lambda point: point.timestamp):
            latest[point.step] = shown(point.value)
        assert latest == {line.step: shown(line.metrics[name]) for line in lines}
        # values that came out the same are there once, others twice
        twice = {step for step, count in Counter(point.step for point in history).items() if count == 2}
        assert twice == (set(range(21, 31)) if name == "train/loss" else set())


def test_passwords_reach_the_server_and_no_file(server: Server, proxy: Proxy, run_dir: Path) -> None:
    secret = uuid.uuid4().hex  # not in this file: uncommitted changes to it are part of what is tracked
    login = {"MLFLOW_TRACKING_USERNAME": "alice", "MLFLOW_TRACKING_PASSWORD": secret}
    run_program(run_dir, "--steps", 5, uri=proxy.uri, **login)
    assert proxy.authorization == {"Basic " + base64.b64encode(f"alice:{secret}".encode()).decode()}
    token = jobs_sync(run_dir, uri=proxy.uri, MLFLOW_TRACKING_TOKEN=f"{secret}-token")
    with_password = proxy.uri.replace("://", f"://alice:{secret}@")
    proxy.mode = "500"
    shown = jobs_sync(run_dir, uri=with_password, code=1)
    proxy.mode = "pass"
    shown += jobs_sync(run_dir, uri=with_password)
    assert secret not in token + shown
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    run = assert_same(server, run_dir)
    assert secret not in repr(run.data)


def test_sqlite_beside_the_run_folder_is_the_default(run_dir: Path) -> None:
    run_program(run_dir, "--steps", 10, "--end", "FAILED", uri="")
    client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    run = only_run(client, run_dir)
    assert on_server(client, run.info.run_id) == in_folder(run_dir)
    # a second server gets a whole copy of its own
    other = f"sqlite:///{run_dir.parent / 'other.db'}"
    (run_dir / "code" / ".changes-1.diff.01234567.tmp").touch()  # it is just being written
    jobs_sync(run_dir, uri=other)
    copy = only_run(MlflowClient(other), run_dir)
    names = {Path(item.path).name for item in MlflowClient(other).list_artifacts(copy.info.run_id, "code")}
    assert "packages-1.txt" in names
    assert not [name for name in names if name.startswith(".")]
    assert on_server(MlflowClient(other), copy.info.run_id) == in_folder(run_dir)


def test_a_folder_that_was_moved_and_a_server_that_lost_or_deleted_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder whose name an URL would have to quote; one damaged run stops no other's sync."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it when it is told of a server
    runs = tmp_path / "a?b %20c"
    for name in ("bad", "run"):
        run_program(runs / name, "--steps", 5, "--end", "FAILED", uri="", VIT_MLFLOW="off")
    with (runs / "bad" / METRICS).open("ab") as file:
        file.write(b"rubbish\n")
    (runs / "run").rename(runs / "moved")
    (runs / "run").mkdir()
    write_json(runs / "run" / "config.json", {})  # of another run, where this one was
    text = jobs_sync(runs / "bad", runs / "moved", uri="", code=1)
    assert "bad: not sent: " in text
    assert "warning" not in text
    client = MlflowClient(mlflow_client.tracking_uri(runs / "moved"))
    assert sorted(path.name for path in runs.glob("*.db")) == ["mlflow.db"]
    first = only_run(client, runs / "moved")
    assert {item.path for item in client.list_artifacts(first.info.run_id)} >= {"config.json", "code"}
    sent = client.download_artifacts(first.info.run_id, "config.json", str(tmp_path))
    assert Path(sent).read_bytes() == (runs / "moved" / "config.json").read_bytes()
    assert on_server(client, first.info.run_id) == in_folder(runs / "moved")

    client.delete_run(first.info.run_id)
    with pytest.raises(UserError, match=f"mlflow runs restore --run-id {first.info.run_id}"):
        mlflow_sync.sync(runs / "moved")
    reader, writer = os.pipe()
    os.write(writer, b"600\n")  # a training that ends gives it so many seconds: it holds GPUs
    said: list[str] = []
    with os.fdopen(reader) as stdin, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        assert mlflow_sync.follow(runs / "moved", said.append) == 1
    assert signal.alarm(0) > 500, "it waited for somebody to restore the run"
    os.close(writer)
    assert len(said) == 1
    client.restore_run(first.info.run_id)
    client.delete_experiment(first.info.experiment_id)
    with pytest.raises(UserError, match=f"mlflow experiments restore --experiment-id {first.info.experiment_id}"):
        mlflow_sync.sync(runs / "moved")

    (runs / "mlflow.db").unlink()
    (runs / "moved" / "config.json").unlink()
    text = jobs_sync(runs / "moved", uri="")
    assert f"no longer has run {first.info.run_id}: sending everything to a new one" in text
    assert "warning: " in text
    assert "config.json should be sent with the run, but no longer exists" in text
    (runs / "mlflow.db").rename(tmp_path / "new.db")  # this process still has the lost file open under its name
    client = MlflowClient(f"sqlite:///{tmp_path / 'new.db'}")
    assert on_server(client, only_run(client, runs / "moved").info.run_id) == in_folder(runs / "moved")


@pytest.mark.soak
def test_runs_that_make_their_sqlite_file_at_the_same_moment(tmp_path: Path) -> None:
    run_dirs = [tmp_path / f"run{index}" for index in range(3)]
    for run_dir in run_dirs:
        run_program(run_dir, "--steps", 5, "--end", "FAILED", uri="", VIT_MLFLOW="off")
    command = [sys.executable, "-m", "jobs.sync"]
    variables = os.environ | {"MLFLOW_TRACKING_URI": ""}
    started = [subprocess.Popen([*command, str(run_dir)], env=variables) for run_dir in run_dirs]
    assert [process.wait(200) for process in started] == [0, 0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for run_dir in run_dirs:
        assert on_server(client, only_run(client, run_dir).info.run_id) == in_folder(run_dir)


def test_a_database_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for who would write to it; who reads it needs no right to its folder."""
    run_dir, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_dir.mkdir()
    records.write_record(
        run_dir, records.Record("key", "vit", "run", {}, {}, attempts=[records.Attempt(1, 0, 0.0, 1, {})])
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow_client.open_client(uri)
    (tmp_path / ".mlflow.db.lock").unlink()
    for others in (tmp_path / "mlflow.db", tmp_path):
        monkeypatch.setattr("os.access", lambda path, _, others=others: Path(path) != others)
        with pytest.raises(UserError, match=f"write permission for '{others}', or set MLFLOW_TRACKING_URI"):
            mlflow_sync.sync(run_dir)
    assert mlflow_client.open_client(uri).search_experiments()
    assert not (tmp_path / ".mlflow.db.lock").exists()


def test_the_reason_is_the_databases() -> None:
    error = RuntimeError("(raised as a result of Query-invoked autoflush; ...)\n(sqlite3) disk is full\n[SQL: ...]")
    assert mlflow_client.reason(error) == "RuntimeError: (sqlite3) disk is full"
