"""python -m jobs.pick RUN...: the best of several runs by the held-out split, such as a grid of learning rates."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs.sync import send
from pipeline.compare.read_runs import evaluated_on
from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import temporary
from pipeline.runs import sweep_record as sweep
from pipeline.runs.folder import read_status

DESCRIPTION = """Name the run whose last evaluation is best. Tune on a part held out of the training set
(data_prep.shard --val-fraction), and report on the validation set.

A run that failed (diverged) is left out, and said so; one that isn't finished stops the choice. Examples:

  python -m jobs.pick work/runs/finetune-l16-lr*
  python -m jobs.pick work/runs/finetune-l16-lr* --link work/campaigns/l16/best --sweep work/runs/finetune-l16
  python -m jobs.pick runs/photos-seed0 runs/photos-seed1 --by eval/top5"""


@dataclass(frozen=True)
class PickConfig:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders."""
    by: str = "eval/top1"
    """Metric: the highest is best, of a loss the lowest."""
    link: Path | None = None
    """Make this a symbolic link to the best run's folder."""
    sweep: Path | None = None
    """The folder that the runs were given as --sweep: write down there, and in MLflow, how they did."""


def main() -> int:
    config = cli.parse(PickConfig, prog="python -m jobs.pick", description=DESCRIPTION)
    if not config.runs:
        raise UserError("RUN is missing: name one or more run folders (see python -m jobs.pick --help)")
    choose(config)
    return errors.EXIT_DONE


def choose(config: PickConfig) -> None:
    """Name the best run, link it, and tell the sweep."""
    scores = read_scores(config.runs, config.by)
    chosen = best(scores, config.by)
    for run, score in scores.items():
        print(f"{run}: {'failed, left out' if score is None else f'{config.by} {score:.4f}'}")
    data = {run: evaluated_on(run) for run, score in scores.items() if score is not None}
    if len(set(data.values())) > 1:
        named = ", ".join(f"{run.name}: {what or 'unknown'}" for run, what in data.items())
        print(f"warning: the runs were evaluated on different data, which no score compares ({named})", file=sys.stderr)
    if config.link is not None:
        point(config.link, chosen)
    if config.sweep is not None:
        sweep.end(config.sweep, scores, chosen, config.by)
        send(config.sweep)
    print(json.dumps({"best": str(chosen), "by": config.by, "score": scores[chosen]}))


def read_scores(runs: Sequence[Path], metric: str) -> dict[Path, float | None]:
    """Each run's last value of ``metric``, None for one that failed. Raises UserError for an unfinished one."""
    scores: dict[Path, float | None] = {}
    for run in runs:
        status = read_status(run)
        if status is None or status.state in ("running", "stopped"):
            state = status.state if status else "not started"
            raise UserError(f"RUN {str(run)!r} is not finished ({state}): start it again to go on, or leave it out")
        if status.state == "finished" and metric not in status.metrics:
            raise UserError(
                f"RUN {str(run)!r} has no metric --by {metric!r} (it has {', '.join(sorted(status.metrics))}): "
                "give its data set a held-out split (--val-fraction), or name another"
            )
        scores[run] = status.metrics[metric] if status.state == "finished" else None
    return scores


def best(scores: dict[Path, float | None], metric: str) -> Path:
    """The run with the highest score (of a loss: the lowest), the first among equals.

    Raises UserError where none finished with a number.
    """
    finished = {run: score for run, score in scores.items() if score is not None and math.isfinite(score)}
    if not finished:
        raise UserError(f"RUN: none of the {len(scores)} runs finished, so none is best by {metric}: see their logs")
    sign = -1 if metric.endswith("loss") else 1
    return max(finished, key=lambda run: sign * finished[run])


def point(link: Path, run: Path) -> None:
    """Make ``link`` point at ``run``, in one step."""
    if link.exists() and not link.is_symlink():
        raise UserError(f"--link {str(link)!r} exists and is no link: name another path")
    if not link.parent.is_dir():
        raise UserError(f"--link {str(link)!r} can't be made: {str(link.parent)!r} is no folder")
    aside = temporary(link)
    aside.symlink_to(run.resolve())
    aside.replace(link)


if __name__ == "__main__":
    cli.run(main)
