"""Children side by side: their exit codes, the first failure, and signals, each passed on once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.core import children
from tests.helpers.launch import REPOSITORY, kill_tree
from tests.helpers.waiting import wait_until

COUNTS = """
import pathlib, signal, sys, time
path, seen = pathlib.Path(sys.argv[1]), []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
path.touch()
end = None
while end is None or time.monotonic() < end:
    time.sleep(0.01)
    end = end or (time.monotonic() + 0.5 if seen else None)
path.write_text(str(len(seen)), encoding='utf-8')
sys.exit(130)  # with another code, the first to end would end the other
"""
# Two children in one folder, of which the second waits until the first has set its trap
READY_FOR_EVER = "touch ready; while :; do sleep 0.02; done"
ONCE_READY = "while [ ! -e ready ]; do sleep 0.02; done"


def shell(script: str, *words: object) -> list[str]:
    return ["sh", "-c", script, *map(str, words)]


@pytest.mark.parametrize(
    ("scripts", "codes", "failed", "code"),
    [
        (("exit 0", "exit 0"), (0, 0), None, 0),
        (("exit 0", "exit 130"), (0, 130), None, 130),
        (("exit 75", "exit 0"), (75, 0), None, 75),
        (("exit 75", "exit 130"), (75, 130), None, 130),
        (("kill -9 $$",), (-9,), 0, 137),
        (("exec sleep 60", "exit 2"), (-15, 2), 1, 2),  # the other is ended
        ((f"trap 'exit 3' TERM; {READY_FOR_EVER}", f"{ONCE_READY}; exit 2"), (3, 2), 1, 2),  # the first counts
    ],
)
def test_exit_codes(
    scripts: tuple[str, ...],
    codes: tuple[int, ...],
    failed: int | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = children.run([shell(script) for script in scripts])
    assert (ended.codes, ended.failed, ended.code) == (codes, failed, code)


def test_a_child_that_stays_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(children, "GRACE", 0.2)
    ended = children.run([shell(f"trap '' TERM; {READY_FOR_EVER}"), shell(f"{ONCE_READY}; exit 2")])
    assert (ended.codes, ended.code) == ((-9, 2), 2)


def test_each_child_gets_a_signal_once(tmp_path: Path) -> None:
    marks = [tmp_path / name for name in "ab"]
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if a shell started pytest with "&"
    before = [signal.getsignal(number) for number in children.PASSED_ON]

    def press() -> None:
        wait_until(lambda: all(mark.exists() for mark in marks))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    ended = children.run([[sys.executable, "-SE", "-c", COUNTS, str(mark)] for mark in marks])
    thread.join()
    assert ended.codes == (130, 130)
    assert [mark.read_text(encoding="utf-8") for mark in marks] == ["1", "1"]
    assert [signal.getsignal(number) for number in children.PASSED_ON] == before
    signal.signal(signal.SIGINT, former)


def test_ctrl_z_stops_the_children_too() -> None:
    script = "import sys; from pipeline.core import children; sys.exit(children.run([['sh', '-c', sys.argv[1]]]).code)"
    command = [sys.executable, "-c", script, "while :; do sleep 0.02; done"]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        try:
            parent = psutil.Process(process.pid)
            wait_until(parent.children, 20)
            both = [parent, *parent.children()]
            for number, states in ((signal.SIGTSTP, {"stopped"}), (signal.SIGCONT, {"sleeping", "running"})) * 2:
                process.send_signal(number)
                wait_until(lambda states=states: {one.status() for one in both} <= states, 20)
            process.terminate()
            assert process.wait(20) == 128 + signal.SIGTERM
        finally:
            kill_tree(process)


def test_environments_and_output(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w+") as file:
        ended = children.run([shell("echo $RANK; cat")] * 2, [{"RANK": "0"}, {"RANK": "1"}], file)
        assert ended.code == 0
        file.seek(0)
        assert sorted(file.read().split()) == ["0", "1"]


def test_none_is_left_if_one_can_t_be_started(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        children.run([shell("exec sleep 60"), [str(tmp_path / "nowhere")]])
    assert time.monotonic() - began < 50
