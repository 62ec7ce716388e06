"""python -m jobs.doctor [RECIPE]: is this cluster ready to train? One table, a fix for each fault, exit code 0 or 1."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from jobs import recipe_options
from pipeline.config.recipes import RECIPES
from pipeline.config.schema import RunConfig
from pipeline.core import cli, errors, results, terminal
from pipeline.core.arguments import given_names
from pipeline.core.errors import UserError
from pipeline.core.needs import Need
from pipeline.preflight.verdicts import Demand, Verdict, judge

DESCRIPTION = """Check what training needs, on all ranks: rendezvous, all-reduce, same code and packages, clocks,
GPUs and their speed, CPUs, the shared folder and its speed, free space, and the loader against what the recipe needs.

After "--", give the options of the training job: the loader and the disk space are then checked for that job. The job
scripts do so before a run's first attempt. Exits with 1 if something must be fixed. Examples:

  python -m jobs.doctor
  python -m jobs.doctor l16 --folder work/runs --data work/shards/in21k -- --data.workers 12 --data.augment medium2
  srun --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 python -m jobs.doctor l16   # after slurm/env.sh, in a job"""


@dataclass(frozen=True)
class DoctorConfig:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = ""
    """Recipe to check for. Default: none; the checks that depend on a recipe are skipped."""
    stage: Literal["pretrain", "finetune"] = "pretrain"
    """Whether RECIPE is one of jobs.pretrain or jobs.finetune."""
    folder: Path = Path("work")
    """Folder for the runs, which all nodes must see."""
    data: str = ""
    """Dataset to measure the loader on, a folder or a URL: short for -- --data.train."""
    split: str = "train"
    """Split of --data: short for -- --data.train-split."""
    json: str = ""
    """File to write the verdicts to as JSON, one per line; - is the standard output, instead of the table."""


RECIPE = Need(lambda options: bool(options.recipe), "without a recipe", "name RECIPE first")
NEEDS = {
    "stage": RECIPE,
    "data": RECIPE,
    "split": Need(lambda options: bool(options.data), "without --data", "add --data DATASET"),
}


def main() -> int:
    config, plan = parse(sys.argv[1:])
    from pipeline.preflight.plan import needed  # torch takes seconds; --help shouldn't
    from pipeline.preflight.ranks import measure

    facts = measure(config.folder, plan)
    if facts is None:  # not rank 0
        return errors.EXIT_DONE
    verdicts = judge(facts, needed(plan, len(facts)) if plan else Demand())
    if config.json:
        results.write(config.json, "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))
    if config.json != results.STDOUT:
        # A job's log isn't a terminal and has no width
        console = terminal.console(width=None if os.isatty(1) else 150)
        console.print(table(verdicts))
    faults = [verdict.check for verdict in verdicts if verdict.state == "fail"]
    print(f"to be fixed before training: {', '.join(faults)}" if faults else "fit to train", flush=True)
    return 1 if faults else errors.EXIT_DONE


def parse(arguments: list[str]) -> tuple[DoctorConfig, RunConfig | None]:
    """The command's own options, and the planned run (None without a recipe)."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, fields = arguments[:at], arguments[at + 1 :]
    config = cli.parse(DoctorConfig, prog="python -m jobs.doctor", description=DESCRIPTION, args=own, needs=NEEDS)
    if not config.recipe:
        if fields:
            raise UserError("RECIPE is missing: the options after -- need a recipe, so name it first")
        return config, None
    recipes = RECIPES[config.stage]
    if config.data:
        if twice := sorted(name for name in given_names(fields) if name.startswith("data.train")):  # or its split
            raise UserError(f"--data replaces --{twice[0]} after --: leave one of them out")
        fields += ["--data.train", config.data, "--data.train-split", config.split]
    prog = f"python -m jobs.{config.stage}"
    plan, _ = recipe_options.parse(recipes, prog=prog, description="", args=[config.recipe, *fields])
    return config, plan


def table(verdicts: Sequence[Verdict]) -> Table:
    result = Table(title="Is this cluster fit to train?")
    for column in ("check", "", "found", "nodes", "remedy"):
        result.add_column(column, overflow="fold")
    for verdict in verdicts:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[verdict.state]
        nodes = ", ".join(verdict.hosts)
        result.add_row(verdict.check, f"[{colour}]{verdict.state}[/]", verdict.figure, nodes, verdict.remedy)
    return result


if __name__ == "__main__":
    cli.run(main)
