"""python -m jobs.plan RECIPE [--stage finetune] [--nodes N] [--field value ...]: what a run takes, without a GPU."""

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline.config import fields
from pipeline.config.recipes import FINETUNE, PRETRAIN
from pipeline.config.schedule import learning_rate
from pipeline.config.schema import RunConfig, accumulation, total_steps, warmup_steps
from pipeline.core import cli, errors, terminal
from pipeline.core.errors import UserError

DESCRIPTION = """Show a recipe's steps, learning rates, memory a GPU, FLOPs, checkpoints and hours, without GPU or data.

With --data.train, the samples and classes are that data set's. Examples:

  python -m jobs.plan b16 --nodes 4
  python -m jobs.plan l16 --stage finetune --train.micro-batch 32 --model.activation-checkpointing True
  python -m jobs.plan l16 --nodes 8 --device A100 --train.zero-stage 2 --plot lr.png"""

DATA = {"pretrain": (14_197_122, 21_843), "finetune": (1_281_167, 1000)}  # images, classes: ImageNet-21K, -2012
GIGABYTES = {
    "B200": 180,
    "H200": 141,
    "H100 NVL": 94,
    "H100": 80,
    "A100": 80,
    "L40S": 48,
    "L40": 48,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "A10G": 24,
    "L4": 24,
}
FITS = 0.9  # of a GPU's memory: the rest is for libraries, buffers and the allocator
BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 64  # characters of the learning rate's curve


@dataclass(frozen=True)
class PlanConfig(RunConfig):
    nodes: int = 1
    gpus_per_node: int = 8
    device: str = "H100"
    """GPU, by a part of its name."""
    mfu: float = 0.4
    """Share of the GPU's peak that training reaches; 0.35 to 0.5 is usual."""
    plot: Path | None = None
    """Also draw the learning rate into this PNG."""
    json: bool = False
    """Print one JSON object instead of the tables."""


def main() -> int:
    config = cli.parse_recipe(recipes(sys.argv[1:]), prog="python -m jobs.plan", description=DESCRIPTION)
    plan = make_plan(config)
    rates = [learning_rate(config.schedule, config.optim.lr, step, plan["steps"]) for step in curve(plan["steps"])]
    if config.json:
        print(json.dumps(plan))
    else:
        show(config, plan, rates)
    if config.plot is not None:
        draw(config, plan["steps"], config.plot)
    return errors.EXIT_DONE


def recipes(arguments: list[str]) -> dict[str, Callable[[], PlanConfig]]:
    """The recipes of the stage that is asked for, with the plan's own fields."""
    asked = ("--stage", "finetune") in itertools.pairwise(arguments) or "--stage=finetune" in arguments
    stage = "finetune" if asked else "pretrain"
    known = FINETUNE if stage == "finetune" else PRETRAIN

    def extended(recipe: Callable[[], RunConfig]) -> Callable[[], PlanConfig]:
        def make() -> PlanConfig:
            return PlanConfig(**{field.name: getattr(recipe(), field.name) for field in dataclasses.fields(RunConfig)})

        make.__doc__ = recipe.__doc__
        return make

    return {name: extended(recipe) for name, recipe in known.items()}


def memory_of(device: str) -> int | None:
    """A GPU's memory: as its name says, such as A100-SXM4-40GB, or by the table; None where neither knows."""
    from pipeline.distributed.devices import is_device

    if said := re.search(r"(\d+) ?GB", device):
        return int(said[1])
    return next((size for part, size in GIGABYTES.items() if is_device(part, device)), None)


def make_plan(config: PlanConfig) -> dict[str, Any]:
    """Everything that is shown. Raises UserError for what can't be run at all."""
    check(config)
    from pipeline.dataset.joined_split import chosen, open_split
    from pipeline.distributed.devices import peak_flops
    from pipeline.engine.deepspeed_config import deepspeed_config
    from pipeline.model.flops import forward_macs, train_flops
    from pipeline.preflight import estimates  # torch takes seconds; --help shouldn't

    samples, classes = DATA[config.stage]
    if config.data.train:
        split = open_split(config.data.train, config.data.train_split, choice=chosen(config.data), check=False)
        samples, classes = len(split), split.info.classes
    peak = peak_flops(config.device)
    size = memory_of(config.device)
    if peak is None or size is None:
        raise UserError(f"--device {config.device!r} is unknown: name one of {', '.join(GIGABYTES)}")
    ranks = config.nodes * config.gpus_per_node
    deepspeed_config(config, ranks)
    memory = estimates.memory(config, classes, ranks)
    steps = total_steps(config.schedule, samples, config.train.global_batch)
    hours = estimates.hours(config, classes, steps, ranks, peak=peak, mfu=config.mfu)
    one = estimates.checkpoint_bytes(config, classes)
    kept = config.checkpoint.keep_last + config.checkpoint.keep_best + 1
    if config.checkpoint.keep_every:
        kept += steps // config.checkpoint.keep_every
    return {
        "samples": samples,
        "classes": classes,
        "gpus": ranks,
        "parameters": estimates.count_parameters(config, classes),
        "steps": steps,
        "epochs": steps * config.train.global_batch / samples,
        "accumulation": accumulation(config.train, ranks),
        "forward_gmacs": forward_macs(config.model, classes) / 1e9,
        "published_gmacs": forward_macs(config.model, classes, published=True) / 1e9,
        "train_gflops_per_image": train_flops(config.model, classes) / 1e9,
        "images_per_second_per_gpu": config.train.global_batch * steps / (hours * 3600) / ranks,
        "hours": hours,
        "gpu_hours": hours * ranks,
        "checkpoint_bytes": one,
        "checkpoints_bytes": one * kept,
        "memory_bytes": dataclasses.asdict(memory),
        "memory_total_bytes": memory.total,
        "device_bytes": size * 1e9,
        "remedy": remedy(config, memory.total, memory.activations, size * 1e9 * FITS),
    }


def check(config: PlanConfig) -> None:
    """Raises UserError for numbers that no run has, and a picture that can't be drawn."""
    fields.check_ranges(config)
    for name in ("nodes", "gpus_per_node"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)} is too small: give at least 1")
    if not 0 < config.mfu <= 1:
        raise UserError(f"--mfu {config.mfu} is no share of a GPU's peak: give more than 0 and at most 1, such as 0.4")
    if config.plot is not None and (config.plot.is_dir() or config.plot.suffix != ".png"):
        raise UserError(f"--plot {str(config.plot)!r} is no picture's name: name a .png file")


def remedy(config: PlanConfig, total: float, activations: float, room: float) -> str:
    """What to change where the run doesn't fit into a GPU; empty where it does."""
    if total <= room:
        return ""
    fixed = total - activations
    for micro in range(config.train.micro_batch - 1, 0, -1):
        fits = fixed + activations * micro / config.train.micro_batch <= room
        if fits and config.train.global_batch % (micro * config.nodes * config.gpus_per_node) == 0:
            return f"--train.micro-batch {micro}"
    if not config.model.activation_checkpointing:
        return "--model.activation-checkpointing True, or a smaller --train.micro-batch"
    if config.train.zero_stage < 3:
        return f"--train.zero-stage {config.train.zero_stage + 1}, or more nodes"
    return "--train.offload True, or more nodes"


def curve(steps: int) -> list[int]:
    """Steps at which the learning rate is shown."""
    return [min(steps - 1, round(steps * column / (WIDTH - 1))) for column in range(WIDTH)]


def show(config: PlanConfig, plan: dict[str, Any], rates: list[float]) -> None:
    console = terminal.console()
    table = Table(title=f"{config.stage} {config.recipe} on {config.nodes} x {config.gpus_per_node} {config.device}")
    table.add_column("what")
    table.add_column("how much", justify="right")
    train = config.train
    rows = [
        ("samples, classes", f"{plan['samples']:,}, {plan['classes']:,}"),
        ("parameters", f"{plan['parameters']:,}"),
        ("steps, epochs", f"{plan['steps']:,}, {plan['epochs']:.1f}"),
        ("global batch", f"{train.global_batch} = {train.micro_batch} x {plan['gpus']} GPUs x {plan['accumulation']}"),
        ("forward pass of an image", f"{plan['forward_gmacs']:.2f} GMACs ({plan['published_gmacs']:.2f} as published)"),
        ("training of an image", f"{plan['train_gflops_per_image']:.1f} GFLOPs"),
        (f"speed at {config.mfu:.0%} MFU", f"{plan['images_per_second_per_gpu']:,.0f} img/s a GPU"),
        ("time", f"{plan['hours']:,.1f} h, {plan['gpu_hours']:,.0f} GPU-hours"),
        ("checkpoint", f"{gigabytes(plan['checkpoint_bytes'])}, {gigabytes(plan['checkpoints_bytes'])} for all kept"),
        *((f"memory: {name}", gigabytes(size)) for name, size in plan["memory_bytes"].items() if size),
        ("memory a GPU", f"{gigabytes(plan['memory_total_bytes'])} of {gigabytes(plan['device_bytes'])}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    top = max(rates) or 1.0
    print("lr " + "".join(BARS[round(rate / top * (len(BARS) - 1))] for rate in rates))
    print(f"   0 to {plan['steps']:,} steps, peak {top:.3g}, warm-up {warmup_steps(config.schedule, plan['steps']):,}")
    if plan["remedy"]:
        print(f"does not fit: {plan['remedy']}")


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def draw(config: PlanConfig, steps: int, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    at = [min(steps - 1, round(steps * point / 999)) for point in range(1000)]
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(at, [learning_rate(config.schedule, config.optim.lr, step, steps) for step in at])
    axes.set(xlabel="step", ylabel="learning rate", title=f"{config.stage} {config.recipe}", ylim=(0, None))
    axes.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"--plot {str(path)!r} can't be written ({error.strerror}): name another file") from error
    finally:
        plt.close(figure)
    print(f"learning rate: {path}")


if __name__ == "__main__":
    cli.run(main)
