"""One undisturbed run that the tests compare with and start from."""

from pathlib import Path

import pytest

from tests.helpers.launch import TORCHRUN, run

STEPS = 24
TINY = (
    "--data.flip", False, "--data.min-area", 0.5, "--data.workers", 1, "--train.global-batch", 32,
    "--train.micro-batch", 8, "--train.log-every", 1, "--schedule.warmup-steps", 4, "--checkpoint.every", 5,
)  # fmt: skip


def pretrain(run_dir: Path, data: Path, steps: int = STEPS) -> tuple[object, ...]:
    job = ("-m", "jobs.pretrain", "tiny", "--run-dir", run_dir, "--data.train", data, "--schedule.steps", steps)
    return (*job, *TINY)


@pytest.fixture(scope="session")
def uninterrupted(seven_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run on two ranks that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(*TORCHRUN, *pretrain(run_dir, seven_digits), log=run_dir.parent / "log")
    return run_dir
