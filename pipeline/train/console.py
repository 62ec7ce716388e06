"""The text of rank 0's log lines."""

from pathlib import Path

from pipeline.config.schema import USUAL_MFU, accumulation
from pipeline.core.units import duration
from pipeline.model.flops import training_hours
from pipeline.train.state import Run

STARTED_BY = {"torchrun": "vit launch, torchrun or accelerate", "slurm": "srun", "alone": "no launcher"}
LONG_RUN = 7 * 24.0  # hours; a longer run gets a warning
LONG_STEP = 1 / 6  # hours; a longer step gets the same warning


def headline(run: Run) -> str:
    config, ranks, data = run.config, run.job.ranks, run.job.data
    batch, passes, start = config.train, accumulation(config.train, ranks.world_size), run.start_step
    return (
        f"{config.stage} {config.recipe}: {f'resumes after step {start}' if start else 'starts'}, {run.job.steps} "
        f"steps of {batch.global_batch} samples ({batch.micro_batch} x {ranks.world_size} rank(s) x {passes}), "
        f"{len(data):,} samples, {data.info.classes:,} classes, {config.model.variant} at {config.model.image_size} px"
        f", ZeRO-{batch.zero_stage} {batch.dtype} on {run.device.type} (peak {run.clock.peak / 1e12:.3g} TFLOP/s per "
        f"rank), started by {STARTED_BY[ranks.launcher]}"
    )


def expectation(run: Run) -> str:
    """A warning if the run will take impractically long on this machine, else ""."""
    config, ranks, peak = run.config, run.job.ranks.world_size, run.clock.peak
    steps = run.job.steps - run.start_step
    if steps < 1 or not peak:
        return ""
    hours = training_hours(config, run.job.data.info.classes, steps, ranks, peak=peak, mfu=USUAL_MFU)
    if hours < LONG_RUN and hours / steps < LONG_STEP:
        return ""
    return (
        f"this run is expected to take {hours / 24:,.1f} days, {duration(hours / steps * 3600)} per step, on {ranks} "
        f"rank(s) of {peak / 1e12:.3g} TFLOP/s ({run.device.type}; estimated at {USUAL_MFU:.0%} of it, as vit plan "
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
    """The message if the run is finished already: its results, and how to train again."""
    shares = {"eval/top1": "top-1", "eval/top5": "top-5"}
    losses = {"eval/loss": "evaluation loss", "train/loss": "training loss"}
    results = [f"{title} {metrics[name]:.2%}" for name, title in shares.items() if name in metrics]
    results += [f"{title} {metrics[name]:.4f}" for name, title in losses.items() if name in metrics]
    return f"{run_dir} is finished: {', '.join([f'{step} steps', *results])}; name another --run-dir to train anew"
