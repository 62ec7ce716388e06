"""A sweep of learning rates on digits: real runs, one of which diverges, the choice, and what MLflow shows of it."""

import csv
import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest

from jobs import sweep as job
from pipeline.compare.read_runs import find_run_folders
from pipeline.config.recipes import FINETUNE
from pipeline.core.errors import UserError
from pipeline.runs import records, sweep_record
from pipeline.runs.folder import METRICS, read_status
from pipeline.tracking.client import open_client, quiet_environment, tracking_uri
from pipeline.tracking.sent import read_sent
from pipeline.tracking.sync import sync
from tests.helpers.jobs import OPTIONS
from tests.helpers.quick_python import executable
from tests.helpers.ranks import VARIABLES
from tests.helpers.terminal import CTRL_C, Terminal

RATES = ("1e-05", "0.03", "1e+30")


@pytest.fixture(scope="module")
def swept(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The sweep's folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("sweep") / "runs" / "ft"
    options = (*OPTIONS, "--data.eval-split", "val", "--data.augment", "none", "--schedule.steps", 25)
    command = ("sweep", "tiny", "--rates", *RATES, "--run-dir", folder, "--parent", "scratch", "--data.train", digits)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "argv", list(map(str, (*command, *options))))
        log = folder.parent.parent / "log"
        with log.open("w") as file:
            keep = os.dup(1)
            sys.stdout.flush()
            os.dup2(file.fileno(), 1)  # the runs are processes of their own
            try:
                assert job.main() == 0
                sys.stdout.flush()
            finally:
                os.dup2(keep, 1)
                os.close(keep)
    return folder, log.read_text()


def test_the_held_out_split_decides_and_a_rate_that_diverges_is_left_out(swept: tuple[Path, str]) -> None:
    folder, output = swept
    runs = [folder.with_name(f"ft-lr{rate}") for rate in RATES]
    states = [read_status(run) for run in runs]
    assert [state.state for state in states if state] == ["finished", "finished", "failed"], output
    scores = {
        run: state.metrics["eval/top1"] for run, state in zip(runs, states, strict=True) if state and run != runs[2]
    }
    assert scores[runs[1]] > scores[runs[0]], "25 steps of a rate of 1e-5 teach nothing"
    assert (folder / "best").resolve() == runs[1].resolve()
    with (folder / sweep_record.TABLE).open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["run", "optim.lr", "eval/top1", ""]
    assert [(row[0], float(row[1])) for row in rows] == [
        (run.name, float(rate)) for run, rate in zip(runs, RATES, strict=True)
    ]
    assert [row[2:] for row in rows] == [[str(scores[runs[0]]), ""], [str(scores[runs[1]]), "best"], ["failed", ""]]
    assert sweep_record.is_sweep(folder)
    assert find_run_folders([folder.parent]) == sorted(runs), "a sweep is not a run to compare"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_mlflow_shows_the_runs_under_the_sweep(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    quiet_environment()
    child = folder.with_name(f"ft-lr{RATES[2]}")
    sync(child)  # its own syncing process would do this while it trains
    client = open_client(tracking_uri(folder))
    above, below = (read_sent(run) for run in (folder, child))
    assert above is not None
    assert below is not None
    assert client.get_run(below.run_id).data.tags["mlflow.parentRunId"] == above.run_id
    run = client.get_run(above.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "ft")
    assert run.data.tags["best"] == f"ft-lr{RATES[1]}"
    assert run.data.tags["best.optim.lr"] == "0.03"
    assert "| best |" in run.data.tags["mlflow.note.content"]
    points = {point.step: point.value for point in client.get_metric_history(above.run_id, "optim.lr")}
    assert points == {number: float(rate) for number, rate in enumerate(RATES, 1)}
    scores = {point.step: point.value for point in client.get_metric_history(above.run_id, "eval/top1")}
    assert scores.keys() == {1, 2}
    assert [item.path for item in client.list_artifacts(above.run_id)] == [sweep_record.TABLE]


def test_ctrl_c_saves_and_the_same_command_resumes(digits: Path, tmp_path: Path) -> None:
    """Each rank gets the keyboard's signal once: a second one would end it without a checkpoint."""
    options = (*OPTIONS, "--data.eval-split", "val", "--data.augment", "none", "--schedule.steps", 100_000)
    sweep = ("jobs.sweep", "tiny", "--ranks", 2, "--rates", 0.01, "--run-dir", tmp_path / "ft", "--parent", "scratch")
    command = (executable(), "-m", *sweep, "--data.train", digits, *options, "--checkpoint.every", 0)
    with Terminal(command) as terminal:
        terminal.wait_for("step 4/")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        (saved,) = set(re.findall(r"saved at step (\d+); run the same command to resume", terminal.text))
        assert f"stopped; run the same command to resume with {tmp_path / 'ft-lr0.01'}" in terminal.text
        assert "Traceback" not in terminal.text
    with Terminal(command) as terminal:
        terminal.wait_for(f"resumes after step {saved}")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text


def test_choosing_again_adds_to_the_record(swept: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = swept
    scores = {folder.with_name(f"ft-lr{rate}"): score for rate, score in zip(RATES, (0.5, 0.25, None), strict=True)}
    sweep_record.end(folder, scores, next(iter(scores)), "eval/top5")
    record = records.read_record(folder)
    assert record is not None
    assert [attempt.state for attempt in record.attempts] == ["FINISHED", "FINISHED"]
    lines = records.effective(records.read_lines(folder / METRICS)[0], record.attempts)
    assert [line.metrics.get("eval/top5") for line in lines] == [0.5, 0.25, None]
    assert record.tags["best"] == "ft-lr1e-05"
    late = tmp_path / "late"  # its runs were not told of it
    sweep_record.end(late, scores, next(iter(scores)), "eval/top5")
    assert sweep_record.is_sweep(late)
    with pytest.raises(UserError, match="is a run's folder"):
        sweep_record.end(next(iter(scores)), scores, next(iter(scores)), "eval/top1")


def test_each_run_gets_the_settings_that_differ_from_the_recipe(tmp_path: Path) -> None:
    run = dataclasses.replace(FINETUNE["b16"].config, run_dir=tmp_path / "ft", parent="B_16.npz", name="mine")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, train=("a", "b"), flip=False))
    words = job.command(job.SweepConfig(run, ranks=8), 0.003, tmp_path / "ft-lr0.003")
    assert words[1:7] == ["-m", "jobs.launch", "--ranks", "8", "finetune", "b16"]
    pairs = " ".join(words[7:])
    assert pairs == (
        f"--run_dir {tmp_path}/ft-lr0.003 --parent B_16.npz --sweep {tmp_path}/ft --name mine-lr0.003 "
        "--data.train a b --data.flip False --optim.lr 0.003"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rates", "0.1", "0.1"), "--rates 0.1 0.1 must be different"),
        (("--rates", "0"), "--rates 0 must be different numbers above 0"),
        (("--ranks", "0"), "--ranks 0 is too small"),
        (("--sweep", "x"), "--sweep 'x' is set by jobs.sweep"),
        (("--run-dir", "."), "--run-dir is missing"),
        (("--data.train", "nowhere"), "--data.train 'nowhere' does not exist"),
        (("--data.train",), "--data.train is missing"),
    ],
)
def test_mistakes(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep", "tiny", "--run-dir", "runs/ft", "--data.train", ".", *arguments])
    with pytest.raises(UserError, match=said):
        job.main()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data.eval-split", "test"), r"--data.eval-split 'test' is not in dataset .* .it has train, val."),
        (
            ("--by", "eval/top9"),
            r"--by 'eval/top9' is not a metric of the held-out split: name one of eval/top1, ",
        ),
        (("--by", "eval_average/top1"), r"--by 'eval_average/top1' is not a metric"),
    ],
)
def test_a_score_that_will_not_come_is_refused_before_training(
    digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    words = ["sweep", "tiny", "--run-dir", str(tmp_path / "ft"), "--parent", "scratch", "--data.train", str(digits)]
    monkeypatch.setattr(sys, "argv", [*words, *arguments])
    monkeypatch.setattr(job.children, "run", lambda _: pytest.fail("it trains"))
    with pytest.raises(UserError, match=said):
        job.main()


def test_another_parent_is_another_sweep(
    swept: tuple[Path, str], digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = swept
    words = ["sweep", "tiny", "--rates", *RATES, "--run-dir", str(folder), "--data.train", str(digits)]
    monkeypatch.setattr(sys, "argv", [*words, "--parent", "B_16.npz"])
    with pytest.raises(UserError, match=r"--parent 'B_16.npz' is not the parent of '.*ft-lr1e-05' of this sweep"):
        job.main()


def test_refused_runs_end_the_sweep(digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without --parent."""
    monkeypatch.setattr(sys, "argv", ["sweep", "tiny", "--run-dir", str(tmp_path / "ft"), "--data.train", str(digits)])
    with pytest.raises(UserError, match=r"--optim.lr 0.003: the run was refused"):
        job.main()
    assert not (tmp_path / "ft" / "best").exists()
