"""What a terminal shows before the first interval of the log: a bar that moves, an ETA, a warning of too much."""

import re
from pathlib import Path

import pytest

from pipeline.config.recipes import PRETRAIN
from pipeline.model.flops import training_hours
from pipeline.runs import records
from tests.helpers.jobs import job
from tests.helpers.quick_python import executable
from tests.helpers.terminal import CTRL_C, Terminal


def test_the_bar_moves_with_every_step_and_step_1_is_logged(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = job(run, digits, "--train.log-every", 1000, "--train.global-batch", 1024, steps=1000)
    with Terminal((executable(), "-m", *command)) as terminal:
        terminal.wait_for(" 4/1,000 steps")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        assert re.search(r"info: step 1/1000  loss \d.* ETA \d\d:\d\d", terminal.text), terminal.text
        assert re.search(r" 3/1,000 steps, .* ETA \d\d:\d\d.*, loss \d\.\d+", terminal.text), terminal.text
        assert "warning: this run is expected" not in terminal.text
    lines, _ = records.read_lines(run / records.METRICS)
    assert lines[0].step == 1


def test_a_model_too_large_for_the_machine_says_so_at_the_start(digits: Path, tmp_path: Path) -> None:
    options = ("--model.variant", "b16", "--model.image-size", 224, "--train.global-batch", 4096)
    command = job(tmp_path / "run", digits, *options, "--train.micro-batch", 4, steps=10_000)
    with Terminal((executable(), "-m", *command)) as terminal:
        terminal.wait_for("warning: this run is expected to take")
        terminal.wait_for("vit plan does")
        said = re.search(r"expected to take ([\d,.]+) days, (?:\d+d )?\d\d:\d\d:\d\d per step", terminal.text)
        assert said, terminal.text
        assert float(said[1].replace(",", "")) > 100


def test_expected_hours_are_flops_over_speed() -> None:
    config = PRETRAIN["tiny"].config
    one = training_hours(config, 10, 100, 1, peak=1e12, mfu=0.4)
    assert training_hours(config, 10, 100, 4, peak=2e12, mfu=0.2) == pytest.approx(one / 4)
    assert training_hours(config, 10, 300, 1, peak=1e12, mfu=0.4) == pytest.approx(3 * one)
