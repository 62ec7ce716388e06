"""The run folder's side of tracking: lines, attempts, crashes, a disk without room."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import log
from pipeline.core.errors import UserError
from pipeline.runs import records
from pipeline.runs.folder import LEDGER, METRICS, SYSTEM
from pipeline.runs.records import Attempt, Line
from pipeline.tracking import client as mlflow_client
from pipeline.tracking.tracker import OFF, Tracker, open_tracker
from tests.helpers.waiting import wait_until


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFF, "off")


def opened(run_dir: Path, *, start_step: int = 0, devices: int = 2, spare_devices: int = 0) -> Tracker:
    return open_tracker(
        run_dir,
        experiment="digits",
        name="tiny",
        params={"optim.lr": 0.1},
        tags={"team": "vision"},
        start_step=start_step,
        devices=devices,
        spare_devices=spare_devices,
        epoch_samples=100,
    )


def lines_of(run_dir: Path) -> list[Line]:
    return records.read_lines(run_dir / METRICS)[0]


@given(st.floats(), st.integers(0, 2**53), st.integers(0, 2**53), st.text(max_size=20))
def test_a_line_comes_back_as_it_was_written(value: float, step: int, samples: int, name: str) -> None:
    line = Line(step, samples, 1764000000.125, 3, {f"train/{name}": value})
    text = records.to_json(line)
    assert text.count(b"\n") == 1
    json.loads(text, parse_constant=pytest.fail)  # strict JSON: no NaN, no Infinity
    back = records.from_json(text)
    assert (back.step, back.samples, back.time, back.attempt) == (step, samples, 1764000000.125, 3)
    got = back.metrics[f"train/{name}"]
    assert got == value or (math.isnan(got) and math.isnan(value))


def test_reading_goes_on_where_it_stopped_and_leaves_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    first, second = (records.to_json(Line(step, 0, 0.0, 1, {"a": 1.0})) for step in (1, 2))
    path.write_bytes(first + second[:7])
    lines, offset = records.read_lines(path)
    assert ([line.step for line in lines], offset) == ([1], len(first))
    path.write_bytes(first + second)
    lines, offset = records.read_lines(path, offset)
    assert ([line.step for line in lines], offset) == ([2], len(first + second))
    assert records.read_lines(path, offset) == ([], offset)


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b"[1]\n", b'{"step": 1}\n', b"\xff\xfe\n"])
def test_a_damaged_line_is_one_error_that_names_file_and_byte(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / METRICS
    good = records.to_json(Line(1, 8, 0.0, 1, {"a": 1.0}))
    path.write_bytes(good + damage)
    with pytest.raises(UserError, match=rf"{METRICS}.* byte {len(good)}\b"):
        records.read_lines(path)


def test_the_steps_that_count_are_those_done_last() -> None:
    attempts = [
        Attempt(number, start, 0.0, 1, {}) for number, start in [(1, 0), (2, 30), (3, 20)]
    ]  # the third goes back behind the second's start
    assert records.last_steps(attempts) == {1: 20, 2: 20, 3: math.inf}
    lines = [Line(step, 0, 0.0, 1, {}) for step in (10, 20, 30, 40)]
    lines += [Line(step, 0, 0.0, 2, {}) for step in (40, 50)]
    lines += [Line(step, 0, 0.0, 3, {}) for step in (30, 40)]
    assert [(line.attempt, line.step) for line in records.effective(lines, attempts)] == [
        (1, 10),
        (1, 20),
        (3, 30),
        (3, 40),
    ]


def test_a_torn_last_line_is_cut_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    whole = records.to_json(Line(1, 0, 0.0, 1, {"a": 1.0}))
    path.write_bytes(whole + b'{"step": 2, ' + b" " * 100_000)  # longer than one look back
    appender = records.Appender(path)
    assert appender.append(records.to_json(Line(2, 0, 0.0, 1, {"a": 2.0})))
    appender.close()
    assert [line.step for line in records.read_lines(path)[0]] == [1, 2]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond ``size`` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_delays_lines_and_loses_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    tracker = opened(tmp_path / "run")
    path = tmp_path / "run" / METRICS
    tracker.log(1, 8, {"train/loss": 1.0})
    with no_file_above(path.stat().st_size + 10):  # room for a part of the next line
        tracker.log(2, 16, {"train/loss": 2.0})
        tracker.log(3, 24, {"train/loss": 3.0})
        assert [line.step for line in lines_of(tmp_path / "run")] == [1]
        assert path.read_bytes().endswith(b"\n")
    tracker.log(4, 32, {"train/loss": 4.0})
    tracker.close("FINISHED")
    assert [(line.step, line.metrics["train/loss"]) for line in lines_of(tmp_path / "run")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
    ]
    said = capfd.readouterr().err
    assert said.count("can't be written") == 1
    assert said.count("can be written again") == 1


def test_lines_that_never_found_room_are_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    tracker = opened(tmp_path / "run")
    tracker.log(1, 8, {f"train/{number}": 1.0 for number in range(500)})
    with no_file_above((tmp_path / "run" / METRICS).stat().st_size):  # smaller files can be written
        tracker.log(2, 16, {"train/loss": 2.0})
        tracker.close("FINISHED")
    assert "1 line(s)" in capfd.readouterr().err


def test_where_not_even_the_warning_finds_room_training_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log.set_up()
    tracker = opened(tmp_path / "run")
    with no_file_above(0):  # pytest's capture is such a file, as a Slurm log is
        tracker.log(1, 8, {"train/loss": 2.0})
        tracker.artifact(tmp_path)
    tracker.log(2, 16, {"train/loss": 2.0})
    tracker.close("FINISHED")
    assert [line.step for line in lines_of(tmp_path / "run")] == [1, 2]
    assert "written again" in capfd.readouterr().err


def test_an_attempt_goes_on_in_the_same_record(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = opened(run_dir)
    first.log(10, 80, {"train/loss": 1.0, "speed/step_seconds": 0.001})
    first.log(20, 160, {"train/loss": 0.9, "speed/step_seconds": 0.001})
    first.close("KILLED")
    second = opened(run_dir, start_step=10)
    second.log(20, 160, {"train/loss": 0.9, "speed/step_seconds": 0.001})
    second.close("FINISHED")
    record = records.read_record(run_dir)
    assert record is not None
    assert [(attempt.number, attempt.start_step, attempt.state) for attempt in record.attempts] == [
        (1, 0, "KILLED"),
        (2, 10, "FINISHED"),
    ]
    lines = lines_of(run_dir)
    standing = records.effective(lines, record.attempts)
    assert [(line.attempt, line.step) for line in standing] == [(1, 10), (2, 20)]
    hours = [line.metrics["progress/device_hours"] for line in lines]
    assert hours == sorted(hours)  # the redone steps cost device-hours too
    assert hours[0] > 0
    assert standing[-1].metrics["progress/epochs"] == 1.6
    useful = 20 * 0.001 * 2 / 3600  # 20 steps that count on two devices
    last = standing[-1].metrics
    assert last["progress/goodput"] == pytest.approx(min(1.0, useful / last["progress/device_hours"]), rel=1e-6)
    assert (last["progress/restarts"], last["progress/lost_steps"]) == (1, 10)
    assert "progress/idle_device_hours" not in last
    assert "progress/restarts" not in lines[0].metrics


def test_goodput_counts_spare_nodes_and_restarts_in_the_slurm_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    run_dir = tmp_path / "run"
    first = opened(run_dir, devices=8, spare_devices=8)
    first.log(10, 80, {"speed/step_seconds": 0.001})
    first.close("FAILED")
    (line,) = lines_of(run_dir)
    half = line.metrics["progress/device_hours"]
    assert line.metrics["progress/idle_device_hours"] == pytest.approx(half), "as many idle devices as busy ones"
    assert line.metrics["progress/goodput"] == pytest.approx(min(1.0, 8 * 0.01 / 3600 / (2 * half)))
    record = records.read_record(run_dir)
    assert record is not None
    early = [records.to_json(Line(10, 80, time.time() - 36, 1, line.metrics))]  # 36 s passed before the restart
    (run_dir / METRICS).write_bytes(b"".join(early))
    second = opened(run_dir, start_step=8, devices=8)
    second.log(20, 160, {})
    again = lines_of(run_dir)[-1].metrics
    assert again["progress/idle_device_hours"] - half == pytest.approx(8 * 36 / 3600, rel=0.05)
    second.close("FAILED")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # a requeue: the devices were given back
    third = opened(run_dir, start_step=20, devices=8)
    third.log(30, 240, {})
    requeued = lines_of(run_dir)[-1].metrics
    assert requeued["progress/idle_device_hours"] == again["progress/idle_device_hours"]
    assert (requeued["progress/restarts"], requeued["progress/lost_steps"]) == (2, 2)
    third.close("FINISHED")


def test_a_killed_process_leaves_a_run_that_reads_as_dead(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing; the next attempt closes it as FAILED at its last line."""
    run_dir = tmp_path / "run"
    program = (
        "import itertools, sys\nfrom pathlib import Path\nfrom pipeline.tracking.tracker import open_tracker\n"
        "tracker = open_tracker(Path(sys.argv[1]), experiment='e', name='n', params={}, tags={})\n"
        "for step in itertools.count(1): tracker.log(step, step, {f'm/{i}': step + 0.5 for i in range(20)})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(run_dir)], env=os.environ | {OFF: "off"})
    try:
        wait_until(lambda: len(lines_of(run_dir)) >= 50)
        record = records.read_record(run_dir)
        assert record is not None
        assert records.alive(run_dir, record.attempts[-1])
    finally:
        process.kill()
        process.wait()
    assert not records.alive(run_dir, record.attempts[-1])
    before = lines_of(run_dir)
    assert [line.step for line in before] == list(range(1, len(before) + 1))
    opened(run_dir, start_step=40).close("FINISHED")
    after = records.read_record(run_dir)
    assert after is not None
    assert after.key == record.key
    assert after.attempts[0].state == "FAILED"
    assert after.attempts[0].ended == pytest.approx(before[-1].time, abs=0.01)


def test_a_run_on_another_host_is_alive_while_its_files_grow(tmp_path: Path) -> None:
    attempt = Attempt(1, 0, time.time() - 1000, 1, {"host": "elsewhere"})
    (tmp_path / SYSTEM).mkdir()
    for name in (METRICS, f"{SYSTEM}/node2.jsonl", LEDGER, "status.json"):
        assert not records.alive(tmp_path, attempt)
        path = tmp_path / name
        path.write_bytes(b"")
        assert records.alive(tmp_path, attempt)
        os.utime(path, (time.time() - records.SILENCE - 5,) * 2)
    assert not records.alive(tmp_path, attempt)


def test_a_group_that_shares_a_run_may_go_on_with_it(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        records.Appender(tmp_path / "metrics.jsonl").close()
        with mlflow_client._alone_with_tables(f"sqlite:///{tmp_path}/mlflow.db"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("metrics.jsonl", "mlflow.db")] == [0o664, 0o664]
