"""Selecting the best of several runs, such as a learning-rate grid, by a metric of the held-out split."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.compare.read_runs import evaluated_on
from pipeline.core.errors import UserError
from pipeline.core.files import put_in_place, temporary
from pipeline.runs import sweep_record
from pipeline.runs.folder import is_run, read_status
from pipeline.tracking.resend import send

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The best run, and the runs it was chosen from."""

    scores: dict[Path, float | None]  # by run folder; None for a run that failed
    best: Path
    by: str  # the metric

    def __str__(self) -> str:
        """One line per run, then the result as one line of JSON."""
        lines = [
            f"{run}: {'failed, skipped' if score is None else f'{self.by} {score:.4f}'}"
            for run, score in self.scores.items()
        ]
        result = {"best": str(self.best), "by": self.by, "score": self.scores[self.best]}
        return "\n".join([*lines, json.dumps(result)])


def select(runs: Sequence[Path], by: str) -> Selection:
    """Choose the best of ``runs``; warns if they were evaluated on different data. Raises UserError."""
    scores = read_scores(runs, by)
    chosen = best(scores, by)
    data = {run: evaluated_on(run) for run, score in scores.items() if score is not None}
    if len(set(data.values())) > 1:
        named = ", ".join(f"{run.name}: {what or 'unknown'}" for run, what in data.items())
        logger.warning("the runs were evaluated on different data, so their scores are not comparable (%s)", named)
    return Selection(scores, chosen, by)


def publish(selection: Selection, *, link: Path | None, sweep: Path | None) -> None:
    """Make ``link`` point at the best run, and write the scores to the folder ``sweep`` and its MLflow run."""
    if link is not None:
        point(link, selection.best)
    if sweep is not None:
        sweep_record.end(sweep, selection.scores, selection.best, selection.by)
        send(sweep)


def read_scores(runs: Sequence[Path], metric: str) -> dict[Path, float | None]:
    """Each run's last value of ``metric``, None for one that failed. Raises UserError for an unfinished one."""
    scores: dict[Path, float | None] = {}
    for run in runs:
        if run.is_dir() and not is_run(run) and any(map(is_run, run.iterdir())):
            raise UserError(f"RUN {str(run)!r} is a folder of runs, not a run: name the runs in it, such as {run}/*")
        status = read_status(run)
        if status is None or status.state in ("running", "stopped"):
            state = status.state if status else "not started"
            raise UserError(f"RUN {str(run)!r} is not finished ({state}): start it again to resume it, or leave it out")
        if status.state == "finished" and metric not in status.metrics:
            raise UserError(
                f"RUN {str(run)!r} has no metric --by {metric!r} (it has {', '.join(sorted(status.metrics))}): "
                "give its dataset a held-out split (--val-fraction), or name another"
            )
        scores[run] = status.metrics[metric] if status.state == "finished" else None
    return scores


def best(scores: Mapping[Path, float | None], metric: str) -> Path:
    """The run with the highest score (the lowest for a loss); the first of equal ones.

    Raises UserError if none finished with a finite score.
    """
    finished = {run: score for run, score in scores.items() if score is not None and math.isfinite(score)}
    if not finished:
        raise UserError(f"RUN: none of the {len(scores)} runs finished, so none is best by {metric}: see their logs")
    sign = -1 if metric.endswith("loss") else 1
    return max(finished, key=lambda run: sign * finished[run])


def point(link: Path, run: Path) -> None:
    """Make ``link`` point at ``run``, atomically."""
    if link.exists() and not link.is_symlink():
        raise UserError(f"--link {str(link)!r} exists and is not a symbolic link: name another path")
    if not link.parent.is_dir():
        raise UserError(f"--link {str(link)!r} can't be created: {str(link.parent)!r} is not a folder")
    aside = temporary(link)
    aside.symlink_to(run.resolve())
    put_in_place(aside, link)
