"""python -m jobs.doctor [RECIPE]: is this cluster fit to train? One table, a remedy for each fault, exit 0 or 1."""

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
from pipeline.core.errors import UserError
from pipeline.preflight.verdicts import Need, Verdict, judge

DESCRIPTION = """Check what training needs, on all ranks: rendezvous, all-reduce, same code and packages, clocks,
GPUs and their speed, CPUs, the shared folder and its speed, free space, and the loader against what the recipe needs.

What follows "--" are fields of the recipe, as the training job gets them: then that job's own loader and space are
looked at. Job scripts run it so before a run's first attempt. It exits with 1 where something must be mended. Examples:

  python -m jobs.doctor
  python -m jobs.doctor l16 --folder work/runs --data work/shards/in21k -- --data.workers 12 --data.augment medium2
  srun --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 python -m jobs.doctor l16   # after slurm/env.sh, in a job"""


@dataclass(frozen=True)
class DoctorConfig:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ""
    """Recipe to plan for; empty leaves out what depends on one."""
    stage: Literal["pretrain", "finetune"] = "pretrain"
    """Where RECIPE comes from."""
    folder: Path = Path("work")
    """Where runs go: must be seen by all nodes."""
    data: str = ""
    """Data set to measure the loader on, a folder or a URL: short for -- --data.train."""
    split: str = "train"
    """Its split: short for -- --data.train-split."""
    json: str = ""
    """File to write the verdicts, one per line, to as JSON; - is the standard output, instead of the text."""


def main() -> int:
    config, plan = parse(sys.argv[1:])
    from pipeline.preflight.plan import needed  # torch takes seconds; --help shouldn't
    from pipeline.preflight.ranks import measure

    facts = measure(config.folder, plan)
    if facts is None:  # not rank 0
        return errors.EXIT_DONE
    verdicts = judge(facts, needed(plan, len(facts)) if plan else Need())
    if config.json:
        results.write(config.json, "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts))
    if config.json != results.STDOUT:
        # A job's log is no terminal and has no width of its own
        console = terminal.console(width=None if os.isatty(1) else 150)
        console.print(table(verdicts))
    faults = [verdict.check for verdict in verdicts if verdict.state == "fail"]
    print(f"to be mended before training: {', '.join(faults)}" if faults else "fit to train", flush=True)
    return 1 if faults else errors.EXIT_DONE


def parse(arguments: list[str]) -> tuple[DoctorConfig, RunConfig | None]:
    """Our own options, and the run that is planned; None without a recipe."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, fields = arguments[:at], arguments[at + 1 :]
    config = cli.parse(DoctorConfig, prog="python -m jobs.doctor", description=DESCRIPTION, args=own)
    if not config.recipe:
        if fields or config.data:
            raise UserError("RECIPE is missing: --data and the fields after -- are those of a recipe, so name it first")
        return config, None
    recipes = RECIPES[config.stage]
    if config.data:
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
