"""python -m jobs.pick RUN...: pick the best of several runs by the held-out split, such as a grid of learning rates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.compare.select import publish, select
from pipeline.core import cli, errors
from pipeline.core.errors import UserError

DESCRIPTION = """Print the run with the best last evaluation. Tune on a held-out part of the training set
(data_prep.shard --val-fraction), and report on the validation set.

A run that failed (diverged) is skipped with a warning; an unfinished run is an error. Examples:

  python -m jobs.pick work/runs/finetune-l16-lr*
  python -m jobs.pick work/runs/finetune-l16-lr* --link work/campaigns/l16/best --sweep work/runs/finetune-l16
  python -m jobs.pick runs/photos-seed0 runs/photos-seed1 --by eval/top5"""


@dataclass(frozen=True)
class PickConfig:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Run folders."""
    by: str = "eval/top1"
    """Metric to compare: the highest value is best, for a loss the lowest."""
    link: Path | None = None
    """Path of a symbolic link to make to the best run's folder."""
    sweep: Path | None = None
    """Folder of the sweep, as the runs were given it by --sweep: record their scores there and in MLflow."""


def main() -> int:
    config = cli.parse(PickConfig, prog="python -m jobs.pick", description=DESCRIPTION)
    if not config.runs:
        raise UserError("RUN is missing: name one or more run folders (see python -m jobs.pick --help)")
    selection = select(config.runs, config.by)
    print(selection, flush=True)
    publish(selection, link=config.link, sweep=config.sweep)
    return errors.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
