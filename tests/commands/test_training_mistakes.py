"""A user's mistakes at the training commands: one line that names field, value and remedy; exit code 2."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launch import REPOSITORY, environment
from tests.helpers.mistakes import mistake


@pytest.fixture
def unfinished(digits: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "unfinished"
    shutil.copytree(digits, folder)
    (folder / "dataset.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["tinny"], ["'tinny'", "did you mean tiny", "b16"]),
        (["tiny", "--optim.lerning-rate", "1"], ["--optim.lerning-rate", "--help"]),
        (["tiny", "--optim.lr", "high"], ["optim.lr", "high"]),
        (["tiny", "--run-dir", "{run}"], ["--data.train", "data_prep.shard"]),
        (["tiny", "--run-dir", "{run}", "--data.train", "/nowhere/x"], ["/nowhere/x", "does not exist"]),
        (["tiny", "--run-dir", "{run}", "--data.train", "{unfinished}"], ["unfinished", "dataset.json"]),
        (
            ["tiny", "--run-dir", "{run}", "--data.train", "{digits}", "--data.train-split", "test"],
            ["test", "train", "val"],
        ),
        (
            ["tiny", "--run-dir", "{run}", "--data.train", "{digits}", "--train.global-batch", "100"],
            ["train.global_batch 100", "train.micro_batch 32", "train.micro_batch to a divisor of 100, such as 25"],
        ),
        (["tiny", "--data.train", "{digits}"], ["--run-dir"]),
        (
            ["tiny", "--run-dir", "{digits}", "--data.train", "{digits}"],
            ["--run-dir", "holds _info.json, ", "but no run", "name a new folder"],
        ),
        (
            ["tiny", "--run-dir", "{run}", "--data.augment", "medium1", "--train.micro-batch", "1"],
            ["data.augment medium1", "train.micro_batch 1", "set an even train.micro_batch"],
        ),
        (
            ["tiny", "--run-dir", "{run}", "--data.train", "{digits}", "--model.image-size", "33"],
            ["model.image_size", "33"],
        ),
        (
            [
                "tiny",
                "--run-dir",
                "{run}",
                "--data.train",
                "{digits}",
                "--train.zero-stage",
                "0",
                "--train.dtype",
                "bfloat16",
            ],
            ["zero_stage 0", "bfloat16"],
        ),
    ],
)
def test_pretrain(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    digits: Path,
    unfinished: Path,
    tmp_path: Path,
    arguments: list[str],
    parts: list[str],
) -> None:
    places = {"run": tmp_path / "run", "digits": digits, "unfinished": unfinished}
    line = mistake(capsys, monkeypatch, "jobs.pretrain", *[text.format(**places) for text in arguments])
    for part in parts:
        assert part in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_shard_that_is_missing_is_named_at_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path / "data")
    (tmp_path / "data" / "train-00001.tar").unlink()
    line = mistake(
        capsys, monkeypatch, "jobs.pretrain", "tiny", "--run-dir", tmp_path / "run", "--data.train", tmp_path / "data"
    )
    assert "train-00001.tar" in line


def test_finetune_parents(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    digits: Path,
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    common = ("--run-dir", tmp_path / "run", "--data.train", digits)
    assert "--parent is missing" in mistake(capsys, monkeypatch, "jobs.finetune", "tiny", *common)
    line = mistake(capsys, monkeypatch, "jobs.finetune", "tiny", *common, "--parent", tmp_path / "none")
    assert f"--parent {str(tmp_path / 'none')!r} does not exist" in line
    line = mistake(capsys, monkeypatch, "jobs.finetune", "tiny", *common, "--parent", digits)
    assert str(digits) in line
    line = mistake(
        capsys, monkeypatch, "jobs.finetune", "b16", *common, "--parent", uninterrupted, "--train.micro-batch", 1
    )
    assert "model.variant is 'b16'" in line
    assert "is a 'tiny'" in line
    assert "use the recipe of tiny" in line


def test_another_configuration_in_the_same_run_folder_is_refused_with_the_difference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uninterrupted: Path, seven_digits: Path
) -> None:
    line = mistake(
        capsys, monkeypatch, "jobs.pretrain", "tiny", "--run-dir", uninterrupted, "--data.train", seven_digits
    )
    assert "train.global_batch: 32 -> 64" in line
    assert "--run-dir" in line


def test_a_mistake_in_a_real_process_is_the_same_line_without_a_traceback(tmp_path: Path) -> None:
    job = [
        sys.executable,
        "-m",
        "jobs.pretrain",
        "tiny",
        "--run-dir",
        str(tmp_path / "run"),
        "--data.train",
        "/nowhere",
    ]
    done = subprocess.run(
        job, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
