"""Messages of commands and of ranks (pipeline/core/log.py): who says what, and when."""

import logging
import re
import socket
import subprocess
import sys

import pytest

from pipeline.core import log
from pipeline.core.errors import UserError

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
logger = logging.getLogger("pipeline.core.test")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.delenv(log.LEVEL, raising=False)
    yield
    for name in log.PACKAGES:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.NOTSET)


def say() -> None:
    logger.debug("detail")
    logger.info("step %d/%d", 5, 60)
    logger.warning("slow", extra=log.ONCE)
    logger.error("gone")


def test_a_rank_says_when_where_and_who_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(3, 64, stamped=True)
    say()
    captured = capsys.readouterr()
    assert captured.out == ""
    host = re.escape(socket.gethostname())
    assert re.fullmatch(f"{STAMP} {host} 3/64 info: step 5/60\n{STAMP} {host} 3/64 error: gone\n", captured.err)


def test_rank_0_alone_says_what_all_would_say(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(0, 64, stamped=True)
    say()
    assert " 0/64 warning: slow\n" in capsys.readouterr().err


def test_a_command_says_it_plainly_and_once_however_often_it_is_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(1, 2, stamped=True)
    log.set_up()
    say()
    assert capsys.readouterr().err == "step 5/60\nwarning: slow\nerror: gone\n"


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("INFO", 3), ("warning", 2), ("error", 1), ("", 3)])
def test_the_lowest_level_comes_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str, lines: int
) -> None:
    monkeypatch.setenv(log.LEVEL, level)
    log.set_up(0, 1, stamped=True)
    say()
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_an_unknown_level_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log.LEVEL, "loud")
    with pytest.raises(UserError, match=r"VIT_LOG_LEVEL is 'loud': set it to one of debug, info, warning, error"):
        log.set_up()


def test_a_full_disk_does_not_end_a_training() -> None:
    program = "import logging; from pipeline.core import log; log.set_up(); logging.getLogger('pipeline').error('gone')"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        subprocess.run([sys.executable, "-c", program], stderr=full, check=True, timeout=120)
