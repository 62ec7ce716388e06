"""What rank 0 shows of a training: the text of its log lines, and a progress bar on a terminal."""

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.config.schema import USUAL_MFU, accumulation
from pipeline.core import log, terminal
from pipeline.core.units import duration
from pipeline.model.flops import training_hours
from pipeline.train.state import Run

LONG_RUN = 7 * 24.0  # hours; a longer one is warned of
LONG_STEP = 1 / 6  # hours, the same


class Bar:
    """A progress bar on a terminal, where ``shown``; the log's lines go above it meanwhile. A context manager."""

    def __init__(self, start: int, steps: int, *, shown: bool) -> None:
        self._start, self._steps, self._began = start, steps, time.monotonic()
        self._progress: Progress | None = None
        self._lines: AbstractContextManager[None] = nullcontext()
        console = terminal.console(stderr=True)
        if shown and console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task("", total=steps, completed=start)
            self._lines = log.written_by(
                lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
            )

    def __enter__(self) -> Self:
        self._lines.__enter__()
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._lines.__exit__(None, None, None)

    def step(self, step: int, loss: float) -> None:
        if self._progress is not None:
            done = max(step - self._start, 1)  # a roll-back may lead behind the start
            seconds = (time.monotonic() - self._began) / done  # per step, evaluations included
            left = duration((self._steps - step) * seconds)
            self._progress.update(self._task, completed=step, description=f"loss {loss:.4f}  ETA {left}")


def headline(run: Run) -> str:
    config, ranks, data = run.config, run.job.ranks, run.job.data
    batch, passes, start = config.train, accumulation(config.train, ranks.world_size), run.start_step
    return (
        f"{config.stage} {config.recipe}: {f'resumes after step {start}' if start else 'starts'}, {run.job.steps} "
        f"steps of {batch.global_batch} samples ({batch.micro_batch} x {ranks.world_size} rank(s) x {passes}), "
        f"{len(data):,} samples, {data.info.classes:,} classes, {config.model.variant} at {config.model.image_size} px"
        f", ZeRO-{batch.zero_stage} {batch.dtype} on {run.device.type} ({run.clock.peak / 1e12:.3g} TFLOP/s a rank at "
        f"best), started by {ranks.launcher}"
    )


def expectation(run: Run) -> str:
    """A warning if the run takes far longer on this machine than people wait; "" if it doesn't."""
    config, ranks, peak = run.config, run.job.ranks.world_size, run.clock.peak
    steps = run.job.steps - run.start_step
    if steps < 1 or not peak:
        return ""
    hours = training_hours(config, run.job.data.info.classes, steps, ranks, peak=peak, mfu=USUAL_MFU)
    if hours < LONG_RUN and hours / steps < LONG_STEP:
        return ""
    return (
        f"this run is expected to take {hours / 24:,.1f} days, {duration(hours / steps * 3600)} per step, on {ranks} "
        f"rank(s) of {peak / 1e12:.3g} TFLOP/s ({run.device.type}; estimated at {USUAL_MFU:.0%} of it, as jobs.plan "
        "does): use more or faster GPUs, or a smaller recipe (tiny), model.image_size, train.global_batch or "
        "schedule.steps"
    )


def progress_line(metrics: dict[str, float], step: int, steps: int) -> str:
    return (
        f"step {step}/{steps}  loss {metrics['train/loss']:.4f}  lr {metrics['train/lr']:.2e}  "
        f"grad {metrics['train/grad_norm']:.3f}  {metrics['speed/images_per_second']:.0f} img/s  "
        f"MFU {metrics['speed/mfu']:.1%}  data wait {metrics['speed/data_wait']:.1%}  "
        f"ETA {duration((steps - step) * metrics['speed/step_seconds'])}"
    )


def finished_line(run_dir: Path, step: int, metrics: dict[str, float]) -> str:
    """What a start says that finds its run finished: how the run ended, and how to train anew."""
    shares = {"eval/top1": "top-1", "eval/top5": "top-5"}
    losses = {"eval/loss": "evaluation loss", "train/loss": "training loss"}
    results = [f"{title} {metrics[name]:.2%}" for name, title in shares.items() if name in metrics]
    results += [f"{title} {metrics[name]:.4f}" for name, title in losses.items() if name in metrics]
    return f"{run_dir} is finished: {', '.join([f'{step} steps', *results])}; name another --run-dir to train anew"
