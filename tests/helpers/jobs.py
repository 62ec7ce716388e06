"""Command lines of small training jobs that many tests start."""

from pathlib import Path

STEPS = 24
TINY = (
    "--data.flip", False, "--data.min-area", 0.5, "--data.workers", 1, "--train.global-batch", 32,
    "--train.micro-batch", 8, "--train.log-every", 1, "--schedule.warmup-steps", 4, "--checkpoint.every", 5,
)  # fmt: skip


def pretrain(run_dir: Path, data: Path, steps: int = STEPS) -> tuple[object, ...]:
    job = ("-m", "jobs.pretrain", "tiny", "--run-dir", run_dir, "--data.train", data, "--schedule.steps", steps)
    return (*job, *TINY)
