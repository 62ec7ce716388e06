"""python -m jobs.plan RECIPE [--stage finetune] [--nodes N] [--field value ...]: what a run costs, without a GPU."""

import dataclasses
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from jobs import recipe_options
from pipeline.config.given import settle
from pipeline.config.recipes import RECIPES
from pipeline.config.schedule import learning_rate
from pipeline.config.schema import USUAL_MFU, RunConfig, warmup_steps
from pipeline.core import arguments as words
from pipeline.core import cli, errors, results, terminal
from pipeline.core.errors import UserError
from pipeline.core.units import duration

DESCRIPTION = """Estimate a run's steps, memory per GPU, FLOPs, checkpoint sizes and hours, without GPU or data.

With --data.train, the numbers of samples and classes are that dataset's. All options of the training job are
accepted, also those that change nothing here. Examples:

  python -m jobs.plan b16 --nodes 4
  python -m jobs.plan l16 --stage finetune --train.micro-batch 32 --model.activation-checkpointing True
  python -m jobs.plan l16 --nodes 8 --device A100 --train.zero-stage 2 --plot lr.png"""

BARS = " ▁▂▃▄▅▆▇█"
USUAL_GPUS = 8  # of a node
WIDTH = 64  # characters of the learning rate's curve


@dataclass(frozen=True)
class PlanConfig(RunConfig):
    nodes: int = 1
    """Number of nodes."""
    gpus_per_node: int | None = None
    """GPUs per node. Default: 8, or the largest number below 8 by which the global batch can be divided."""
    device: str = "H100"
    """GPU, by a part of its name, such as A100."""
    mfu: float = USUAL_MFU
    """Fraction of the GPU's peak FLOP/s that training reaches; 0.35 to 0.5 is usual."""
    plot: Path | None = None
    """PNG file to plot the learning rate to."""
    json: str = ""
    """File to write all numbers to as JSON; - is the standard output, instead of the text."""


def main() -> int:
    config = parse(sys.argv[1:])
    from pipeline.preflight.plan import make_plan  # torch takes seconds; --help shouldn't

    plan = make_plan(
        config, nodes=config.nodes, gpus_per_node=gpus_per_node(config), device=config.device, mfu=config.mfu
    )
    if config.json:
        results.write(config.json, json.dumps(plan) + "\n")
    if config.json != results.STDOUT:
        show(config, plan)
    if config.plot is not None:
        from pipeline.preflight.learning_rate_plot import draw  # matplotlib

        draw(config, plan["steps"], config.plot)
        print(f"learning rate: {config.plot}", file=sys.stderr if config.json == results.STDOUT else sys.stdout)
    return errors.EXIT_DONE


def parse(arguments: list[str]) -> PlanConfig:
    """The run and the cluster. Raises UserError for impossible numbers and a --plot that isn't a .png file."""
    asked = ("--stage", "finetune") in itertools.pairwise(arguments) or "--stage=finetune" in arguments
    recipes = RECIPES["finetune" if asked or recipe_options.stage(arguments) == "finetune" else "pretrain"]
    config, given = recipe_options.parse_into(
        lambda run: PlanConfig(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)}),
        recipes,
        prog="python -m jobs.plan",
        description=DESCRIPTION,
        args=arguments,
    )
    words.check_least(config, nodes=1, **({} if config.gpus_per_node is None else {"gpus_per_node": 1}))
    if not 0 < config.mfu <= 1:
        raise UserError(
            f"--mfu {config.mfu} is out of range: give a fraction of the GPU's peak above 0 and at most 1, such as 0.4"
        )
    if config.plot is not None and (config.plot.is_dir() or config.plot.suffix != ".png"):
        raise UserError(f"--plot {str(config.plot)!r} must end in .png: name such a file")
    return settle(config, given)


def gpus_per_node(config: PlanConfig) -> int:
    """The number that was asked for, or the default, which suits small recipes too."""
    if config.gpus_per_node is not None:
        return config.gpus_per_node
    batch, micro_batches = (
        config.train.global_batch,
        config.nodes * max(config.train.micro_batch, 1),
    )  # 0: refused later
    return next((number for number in range(USUAL_GPUS, 0, -1) if batch % (number * micro_batches) == 0), USUAL_GPUS)


def curve(steps: int) -> list[int]:
    """Steps at which the learning rate is shown."""
    return [min(steps - 1, round(steps * column / (WIDTH - 1))) for column in range(WIDTH)]


def show(config: PlanConfig, plan: dict[str, Any]) -> None:
    rates = [learning_rate(config.schedule, config.optim.lr, step, plan["steps"]) for step in curve(plan["steps"])]
    console = terminal.console()
    table = Table(title=f"{config.stage} {config.recipe} on {config.nodes} x {gpus_per_node(config)} {config.device}")
    table.add_column("what")
    table.add_column("how much", justify="right")
    train = config.train
    rows = [
        ("samples, classes", f"{plan['samples']:,}, {plan['classes']:,}"),
        ("parameters", f"{plan['parameters']:,}"),
        ("steps, epochs", f"{plan['steps']:,}, {plan['epochs']:.1f}"),
        ("global batch", f"{train.global_batch} = {train.micro_batch} x {plan['gpus']} GPUs x {plan['accumulation']}"),
        ("forward pass per image", f"{plan['forward_gmacs']:.2f} GMACs ({plan['published_gmacs']:.2f} as published)"),
        ("training per image", f"{plan['train_gflops_per_image']:.1f} GFLOPs"),
        (f"speed at {config.mfu:.0%} MFU", f"{plan['images_per_second_per_gpu']:,.0f} img/s per GPU"),
        ("time", f"{duration(3600 * plan['hours'])}, {plan['gpu_hours']:,.3g} GPU-hours"),
        ("checkpoint", f"{gigabytes(plan['checkpoint_bytes'])}, {gigabytes(plan['checkpoints_bytes'])} for all kept"),
        *((f"memory: {name}", gigabytes(size)) for name, size in plan["memory_bytes"].items() if size),
        ("memory per GPU", f"{gigabytes(plan['memory_total_bytes'])} of {gigabytes(plan['device_bytes'])}"),
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


if __name__ == "__main__":
    cli.run(main)
