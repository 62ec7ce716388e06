"""What the less common options do to a real run."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import format as checkpoint
from pipeline.runs import records
from pipeline.runs.folder import METRICS
from pipeline.train.profiler import profile
from tests.helpers.jobs import job
from tests.helpers.quick_python import executable
from tests.helpers.ranks import VARIABLES, run_ranks


def losses(run: Path) -> list[float]:
    lines, _ = records.read_lines(run / METRICS)
    return [line.metrics["train/loss"] for line in lines if "train/loss" in line.metrics]


@pytest.fixture(scope="module")
def plain(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    run_ranks(2, ("-m", *job(run, digits, steps=4)), run.parent / "log")
    return run


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (("--train.zero-stage", 2, "--train.offload", True), 1e-5),
        (("--train.zero-stage", 3, "--train.offload", True), 1e-5),
        (("--model.activation-checkpointing", True), 0.0),
    ],
)
def test_same_numbers(plain: Path, digits: Path, tmp_path: Path, options: tuple[object, ...], tolerance: float) -> None:
    run_ranks(2, ("-m", *job(tmp_path / "run", digits, *options, steps=4)), tmp_path / "log")
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), abs=tolerance)
    saved, expected = (dict(checkpoint.State(checkpoint.complete(run)[-1])) for run in (tmp_path / "run", plain))
    assert saved.keys() == expected.keys()
    if tolerance == 0.0:
        assert all(torch.equal(saved[key], tensor) for key, tensor in expected.items())


@pytest.mark.soak  # compiling takes half a minute of two cores
@pytest.mark.timeout(600)
def test_compiled_steps_have_the_same_losses(plain: Path, digits: Path, tmp_path: Path) -> None:
    """In a process of its own: the compiler's helpers don't survive a fork."""
    # its own cache: one killed while compiling leaves a cut-off file in the common one, on which every later run fails
    environment = os.environ | VARIABLES | {"TORCHDYNAMO_DISABLE": "0", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}
    command = [sys.executable, "-m", *map(str, job(tmp_path / "run", digits, "--train.compile", "on", steps=4))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ("--train.label-smoothing", 0.1),
        ("--model.dropout", 0.5),
        ("--model.stochastic-depth", 0.9),
    ],
)
def test_a_regulariser_reaches_the_step_and_is_repeatable(
    plain: Path, digits: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    for name in ("first", "again"):
        run_ranks(1, ("-m", *job(tmp_path / name, digits, *options, steps=4)), tmp_path / f"log-{name}")
    assert losses(tmp_path / "first") == losses(tmp_path / "again")
    assert losses(tmp_path / "first")[-1] != pytest.approx(losses(plain)[-1], abs=1e-4)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_bad_gradient_of_cudnns_attention_repeats_the_step_once(
    plain: Path, digits: Path, tmp_path: Path, stage: int
) -> None:
    """One of two ranks has such a kernel, and its gradient is infinite in step 3: as if nothing had happened."""
    command = job(tmp_path / "run", digits, "--train.zero-stage", stage, steps=4)
    first, _ = run_ranks(2, ("-m", "tests.train.faulty", "cudnn", 0, 3, *command), tmp_path / "log")
    assert "step 3 had a non-finite gradient" in first.output
    assert "repeated with flash, it is finite" in first.output
    assert losses(tmp_path / "run") == pytest.approx(losses(plain), abs=1e-5)


def test_an_attention_kernel_of_choice(plain: Path, digits: Path, tmp_path: Path) -> None:
    (only,) = run_ranks(
        1, ("-m", *job(tmp_path / "run", digits, "--train.attention", "math", steps=2)), tmp_path / "log"
    )
    assert "attention kernel: math" in only.output
    assert losses(tmp_path / "run") == pytest.approx(losses(plain)[:2], abs=1e-4)
    command = ("-m", *job(tmp_path / "none", digits, "--train.attention", "cudnn", steps=2))
    (refused,) = run_ranks(1, command, tmp_path / "log-none", code=2)
    assert "train.attention cudnn needs a GPU, and this rank has none: set auto, flash, math" in refused.output


def test_the_trace_of_some_steps(digits: Path, tmp_path: Path) -> None:
    run_ranks(1, ("-m", *job(tmp_path / "run", digits, "--train.profile", 2, steps=14)), tmp_path / "log")
    (path,) = (tmp_path / "run" / "profile").iterdir()
    names = {event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]}
    assert "aten::linear" in names
    assert "aten::scaled_dot_product_attention" in names


@pytest.mark.parametrize(("done", "name"), [(10, None), (12, "steps-10-12.json"), (20, "steps-10-14.json")])
def test_a_trace_is_named_by_the_steps_in_it_and_none_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, done: int, name: str | None
) -> None:
    caplog.set_level("INFO", "pipeline")
    with profile(tmp_path, 4) as tick:
        for _ in range(done):
            tick()
    assert [path.name for path in (tmp_path / "profile").glob("*")] == ([name] if name else [])
    assert ("no profile: the attempt ended within its first 10 steps" in caplog.text) == (name is None)


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(plain: Path, digits: Path, tmp_path: Path) -> None:
    lines = (plain.parent / "log" / "rank0.log").read_text()
    assert re.search(
        r"^\S+ \S+ \S+ 0/2 info: step 4/4  loss \d\.\d+  lr .*  grad .* img/s  MFU .*%  data wait .*%  ETA 00:00$",
        lines,
        re.M,
    )
    assert "\x1b" not in lines
    ours, theirs = pty.openpty()
    environment = os.environ | VARIABLES | {"TERM": "xterm-256color", "COLUMNS": "160"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [str(executable()), "-m", *map(str, job(tmp_path / "run", digits, steps=4))],
        env=environment, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    assert process.wait(60) == 0
    text = output.decode()
    assert "4/4" in text
    assert "━" in text
    assert "step 4/4  loss" in text
