"""Progress (pipeline/core/progress.py): a bar on a terminal, lines in a file, nothing on other ranks."""

import logging
import re
from pathlib import Path

import pytest

from data_prep.progress import counting
from pipeline.core import log, progress
from pipeline.core.progress import Bar, describe
from tests.helpers.quick_python import executable
from tests.helpers.terminal import Terminal

PROGRAM = r"""
import logging, sys
from pipeline.core import cli
from pipeline.core.progress import Bar
def main():
    with Bar("set [/b] \x1b[31m", 10, "images") as bar:
        for step in range(1, 11):
            bar.advance(note=f"note [{step}]")
            logging.getLogger("pipeline").info("%d of 10 [/x] \x1b[31m " + 90 * "long", step)
            print("result \x1b[31m", step)
        print("complaint \x1b[31m", file=sys.stderr)
cli.run(main)
"""


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Logging as a command sets it up, and lines without a wait."""
    monkeypatch.delenv(log.LEVEL, raising=False)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setattr(progress, "LAST_LINE_AFTER", 0.0)
    log.set_up()
    yield
    for name in log.PACKAGES:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("done", "total", "unit", "seconds", "start", "note", "text"),
    [
        (0, 10, "images", 5.0, 0, "", "0/10 images"),
        (1000, 4000, "images", 10.0, 0, "", "1,000/4,000 images, 100 images/s, ETA 00:30"),
        (5, 10, "steps", 50.0, 0, "loss 1.5", "5/10 steps, 0.1 steps/s, ETA 00:50, loss 1.5"),
        (90, 100, "steps", 20.0, 80, "", "90/100 steps, 0.5 steps/s, ETA 00:20"),  # the rate is that of this start
        (70, 100, "steps", 20.0, 80, "", "70/100 steps"),  # rolled back behind it
        (10, 10, "tars", 0.0, 0, "", "10/10 tars, 10,000,000,000 tars/s"),
        (123, 0, "images", 10.0, 0, "", "123 images, 12 images/s"),
        (5_000_000, 20_000_000, "bytes", 1.0, 0, "", "5/20 MB, 5 MB/s, ETA 00:03"),
        (50_000_000, 0, "bytes", 1.0, 0, "", "50 MB, 50 MB/s"),
        (1, 1_000_000, "images", 1.0, 0, "", "1/1,000,000 images, 1 images/s, ETA 11d 13:46:39"),
    ],
)
def test_a_state_in_words(done: int, total: int, unit: str, seconds: float, start: int, note: str, text: str) -> None:
    assert describe(done, total, unit, seconds, start=start, note=note) == text


def test_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # some CI services set it, and rich would draw into their files
    with Bar("work", 3, "images") as bar:
        bar.advance(2)
        bar.advance(5, note="bad: 1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(
        r"work: 2/3 images, \S+ images/s, ETA 00:01\n(work: 3/3 images, \S+ images/s, bad: 1\n){2}", captured.err
    )


def test_short_work_gets_no_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 30.0)
    monkeypatch.setattr(progress, "LAST_LINE_AFTER", 5.0)
    with Bar("work", 1, "images") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hidden", [{"shown": False}, {"lines": False}])
def test_nothing_is_shown_if_nobody_wants_it(hidden: dict[str, bool], capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("work", 1, "images", **hidden) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


def test_failed_work_does_not_end_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Bar("work", 1, "images"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_reports_of_workers_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("writing", 100, "images") as report:
        report({"images": 20, "bytes": 10_000_000, "truncated": 1})
        report({"images": 30, "kept": 1, "truncated": 1, "no_jpeg": 1})
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"writing: 50/100 images, \S+ images/s, ETA \S+, \S+ MB/s, skipped: 2 truncated, 1 no_jpeg", last
    )


def on_terminal(*command: object) -> bytes:
    """What a terminal of 90 columns gets from a command."""
    with Terminal(command, columns=90) as terminal:
        assert terminal.wait() == 0, terminal.text
        return terminal.raw


def test_a_terminal_gets_a_bar_below_whole_lines() -> None:
    """Messages are lines of their own, never wrapped; no colour that came with the data, no markup that breaks."""
    seen = on_terminal(executable(), "-c", PROGRAM)
    assert b"\x1b[31m" not in seen
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain)]
    long = 90 * "long"
    for step in range(1, 11):
        assert f"{step} of 10 [/x] \\u001b[31m {long}" in lines
        assert f"result \\u001b[31m {step}" in lines
    assert "complaint \\u001b[31m" in lines
    assert lines[-2 if not lines[-1] else -1].startswith("set [/b] \\u001b[31m ━")
    assert re.search(r"10/10 images, \S+ images/s, note \[10\]", plain)


def test_results_reach_the_file_that_the_user_names(tmp_path: Path) -> None:
    script = 'exec "$0" -c "$1" > "$2"'
    seen = on_terminal("sh", "-c", script, executable(), PROGRAM, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "".join(f"result \\u001b[31m {step}\n" for step in range(1, 11))
    assert b"result" not in seen
    assert b"10/10 images" in seen
