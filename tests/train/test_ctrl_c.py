"""Ctrl-C on a real terminal: the first saves, the second leaves at once, and the same command resumes."""

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from pipeline.checkpoint import format as checkpoint
from pipeline.runs.folder import read_status
from tests.helpers.jobs import job
from tests.helpers.launch import LAUNCH, TORCHRUN
from tests.helpers.quick_python import executable
from tests.helpers.ranks import Ranks
from tests.helpers.terminal import CTRL_C, Terminal

LONG = 100_000  # steps
LAUNCHERS = {"single process": ("-m",), "launch": LAUNCH, "torchrun": (*TORCHRUN, "-m")}  # before the command's name


def command(launcher: str, run: Path, data: Path, *options: object, steps: int = LONG) -> tuple[object, ...]:
    name, *rest = job(run, data, "--data.workers", 1, "--checkpoint.every", 0, *options, steps=steps)
    name = name.removeprefix("jobs.") if launcher == "launch" else name
    return (executable(), *LAUNCHERS[launcher], name, *rest)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_saves_and_the_same_command_resumes(launcher: str, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Terminal(command(launcher, run, digits)) as terminal:
        terminal.wait_for("step 4/")
        terminal.press(CTRL_C)
        code = terminal.wait()
        assert code == (1 if launcher == "torchrun" else 130), terminal.text  # torchrun's own
        (saved,) = set(re.findall(r"saved at step (\d+); run the same command to resume", terminal.text))
        assert terminal.text.count("press Ctrl-C again to exit without saving") == 1
        if launcher != "torchrun":
            assert "Traceback" not in terminal.text
    status = read_status(run)
    assert status is not None
    assert (status.state, status.step) == ("stopped", int(saved))
    with Terminal(command(launcher, run, digits)) as terminal:
        terminal.wait_for(f"resumes after step {saved}")
        terminal.press(CTRL_C)  # before its first step, too
        terminal.wait()


@pytest.mark.parametrize("launcher", ["single process", "launch"])
def test_a_second_ctrl_c_leaves_at_once(launcher: str, digits: Path, tmp_path: Path) -> None:
    """While the first one's step still takes minutes, in a loader that waits for a pipe."""
    with Terminal(command(launcher, tmp_path / "run", digits, "--train.global-batch", 16384)) as terminal:
        terminal.wait_for("starts, ")
        terminal.press(CTRL_C)
        terminal.wait_for("Ctrl-C again")
        time.sleep(2.5)  # so that no rank, however late it saw the first, takes both for one press
        terminal.press(CTRL_C)
        assert terminal.wait() == 130
        assert "stopped without saving" in terminal.text
        assert b"\x1b[?25h" in terminal.raw, "the cursor is back"
        assert "Traceback" not in terminal.text
    assert not checkpoint.complete(tmp_path / "run")


def test_sigint_of_terminal_and_launcher_is_one_press(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Ranks(2, ("-m", *job(run, digits, steps=LONG)), tmp_path / "log") as ranks:
        ranks.wait_for("step 4/", 120)
        for rank in (0, 1, 0, 1):
            ranks.signal(rank, signal.SIGINT)
        finished = ranks.wait(60)
    assert [rank.code for rank in finished] == [130, 130], ranks.output()
    assert "saved at step" in finished[0].output
    assert "saved at step" not in finished[1].output


@pytest.mark.parametrize("module", ["pipeline.core.errors", "tyro._fields", "torch._C"])
def test_ctrl_c_during_the_imports_is_one_line(module: str, digits: Path, tmp_path: Path) -> None:
    _, *words = command("single process", tmp_path / "run", digits)
    with Terminal((sys.executable, "-X", "importtime", *words)) as terminal:
        terminal.wait_for(f" {module}\n")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        lines = terminal.text.replace("^C", "").split("\n")
        said = [line for line in lines if line.strip() and not line.startswith("import time:")]
        assert len(said) == 1, said
        assert "interrupted" in said[0]


@pytest.mark.parametrize(("rank", "said"), [("0", ["interrupted"]), ("1", [])])
def test_of_several_ranks_the_first_says_it(rank: str, said: list[str], digits: Path, tmp_path: Path) -> None:
    _, *words = command("single process", tmp_path / "run", digits)
    with Terminal((sys.executable, "-X", "importtime", *words), RANK=rank) as terminal:
        terminal.wait_for(" tyro._fields\n")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        lines = terminal.text.replace("^C", "").split("\n")
        assert [line for line in lines if line.strip() and not line.startswith("import time:")] == said
