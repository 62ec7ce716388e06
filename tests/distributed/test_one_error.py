"""A mistake that every rank finds is printed once, whatever has started the ranks."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import cli
from tests.helpers.launch import ACCELERATE, LAUNCH, TORCHRUN, environment, run
from tests.helpers.quick_python import executable

SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
FAILS = "from pipeline.core import cli\nfrom pipeline.core.errors import UserError\n"
FAILS += "cli.TURN = 60.0\n"  # however late srun is
FAILS += "def main(): raise UserError('--data.train is wrong')\ncli.run(main)\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("pretrain", "tiny", "--run-dir", "{new}", "--data.train", "{none}"), "{none}' does not exist"),  # late
        (("pretrain", "tiny", "--optim.momentum", "0.5"), "optim.momentum 0.5 has no effect"),  # before any import
        (("evaluate", "{none}", "--data", "{none}"), "MODEL '{none}' does not exist"),
    ],
)
def test_under_our_launcher_it_is_the_only_line(command: tuple[str, ...], message: str, tmp_path: Path) -> None:
    places = {"new": tmp_path / "run", "none": tmp_path / "nowhere"}
    words = (word.format(**places) for word in command)
    output = run(*LAUNCH, *words, log=tmp_path / "log", code=2, python=str(executable()))
    (line,) = output.splitlines()
    assert line.startswith("error: ")
    assert message.format(**places) in line


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_launchers_ranks_report_it_once_and_its_report_ends_with_it(
    launcher: tuple[object, ...], tmp_path: Path
) -> None:
    job = ("-m", "jobs.pretrain", "tiny", "--run-dir", tmp_path / "run", "--data.train", tmp_path / "nowhere")
    output = run(*launcher, *job, log=tmp_path / "log", code=1, python=str(executable()))
    lines = [line for line in output.splitlines() if "does not exist" in line]
    assert [line.partition(":")[0].strip() for line in lines] == ["error", "traceback"], output
    assert lines[1].strip().startswith("traceback : error: dataset "), "in torchrun's report"
    assert output.splitlines().index(lines[1]) >= len(output.splitlines()) - 4


def test_under_srun_the_first_rank_speaks() -> None:
    """srun --kill-on-bad-exit ends the others, who have kept silent."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", FAILS],
            env=environment(**dict(zip(SLURM, ("2", str(rank), str(rank)), strict=True))),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert ranks[0].communicate(timeout=100)[1] == "error: --data.train is wrong\n"
        assert ranks[0].returncode == 2
        ranks[1].send_signal(signal.SIGTERM)
        assert ranks[1].communicate(timeout=100)[1] == ""
        assert ranks[1].returncode == -signal.SIGTERM
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def test_an_error_of_another_rank_alone_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise cli.UserError("this node has no data")

    monkeypatch.setattr(cli, "TURN", 0.01)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    try:
        with pytest.raises(SystemExit) as left:
            cli.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: this node has no data\n"


@pytest.mark.parametrize(
    ("variables", "turns"),
    [
        ({}, 0),
        ({"RANK": "0", "LOCAL_RANK": "0"}, 0),
        ({"RANK": "8", "LOCAL_RANK": "0"}, 1),
        ({"RANK": "9", "LOCAL_RANK": "1"}, 2),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 0),
        ({"SLURM_PROCID": "4", "SLURM_LOCALID": "0"}, 1),
        ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, 2),
    ],
)
def test_rank_0_comes_first_and_each_nodes_first_rank_next(variables: dict[str, str], turns: int) -> None:
    assert cli._turn(variables) == turns * cli.TURN
