"""Small pretraining jobs that many tests start, and jobs.audit of what they leave."""

import subprocess
from pathlib import Path

from tests.helpers.quick_python import executable
from tests.helpers.ranks import run_ranks

STEPS = 24
SHORT_STEPS = 8
AUDITED_BATCH = 64  # global batch of run_pretrain's jobs
TINY = (
    "--data.flip", False, "--data.min-area", 0.5, "--data.workers", 1, "--train.global-batch", 32,
    "--train.micro-batch", 8, "--train.log-every", 1, "--schedule.warmup-steps", 4, "--checkpoint.every", 5,
)  # fmt: skip
OPTIONS = (
    "--data.flip", False, "--data.min-area", 0.5, "--data.workers", 0, "--model.image-size", 16,
    "--train.global-batch", 16, "--train.micro-batch", 8, "--train.log-every", 1, "--checkpoint.every", 3,
    "--schedule.warmup-steps", 2, "--data.eval-split", "none",
)  # fmt: skip
TRACKED = (  # of the jobs that log to a real MLflow server
    "--data.flip", False, "--data.min-area", 0.5, "--data.workers", 0, "--train.global-batch", 32,
    "--train.micro-batch", 16, "--train.log-every", 1, "--schedule.steps", 30, "--schedule.warmup-steps", 4,
)  # fmt: skip


def pretrain(run_dir: Path, data: Path, steps: int = STEPS) -> tuple[object, ...]:
    """Arguments of ``python`` for a job at the recipe's image size, which evaluates and reads with one worker."""
    job = ("-m", "jobs.pretrain", "tiny", "--run-dir", run_dir, "--data.train", data, "--schedule.steps", steps)
    return (*job, *TINY)


def job(run_dir: Path, data: Path, *options: object, steps: int = SHORT_STEPS) -> tuple[object, ...]:
    """Arguments of ``python -m`` for the fastest job: images of 16 px, no evaluation, no workers. ``options`` win."""
    command = ("jobs.pretrain", "tiny", "--run-dir", run_dir, "--data.train", data, "--schedule.steps", steps)
    return (*command, *OPTIONS, *options)


def run_pretrain(run: Path, data: Path, world: int, *options: object, code: int = 0) -> None:
    """Run a ``job`` of 24 steps of 64 samples on ``world`` ranks to its end, which must have exit code ``code``."""
    batches = ("--train.global-batch", AUDITED_BATCH, "--train.micro-batch", 16, "--train.log-every", 100)
    command = job(run, data, *batches, "--checkpoint.every", 10, *options, steps=STEPS)
    run_ranks(world, ("-m", *command), run.parent / f"log{world}", code=code)


def audit(*arguments: object) -> tuple[int, str]:
    """Exit code and output of ``jobs.audit``."""
    command = [str(executable()), "-m", "jobs.audit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr
