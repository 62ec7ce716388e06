"""Runs side by side: how they differ, and their results. Pure."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from pipeline.compare.read_runs import Run
from pipeline.config.fields import HIDDEN, UNLIKE_SEEDS
from pipeline.config.published import COURSE_BATCH, COURSES, IMAGENET, held_against


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of one metric over seeds."""

    mean: float
    std: float  # sample standard deviation (n - 1); nan for one run
    n: int


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed: the same settings, data, evaluation data, start weights and code."""

    name: str
    runs: tuple[Run, ...]
    depth: int = 0  # 1 under the run it was fine-tuned from, 2 under a fine-tune of that
    results: dict[str, Spread] = field(default_factory=dict)  # the last values, by metric
    best: dict[str, Spread] = field(default_factory=dict)  # the best values, for the metrics in BEST

    @property
    def first(self) -> Run:
        return self.runs[0]


# Metrics whose best value is shown beside the last, and the function that picks the best.
BEST: dict[str, Callable[[Iterable[float]], float]] = {"eval/top1": max, "eval/loss": min}


def published(run: Run) -> dict[str, float]:
    """Published top-1 (percent) comparable with this run's, by source; empty for other data or sizes."""
    stage = run.config.get("stage", "")
    if run.facts.get("classes") != str(IMAGENET[stage].classes if stage in IMAGENET else None):
        return {}
    return held_against(stage, run.config.get("recipe", ""), int(run.config.get("model.image_size", "0")))


def course(run: Run, against: str) -> tuple[list[float], list[float]]:
    """The published curve of this run's fine-tuning: x by ``against`` (samples, step or epochs), top-1 from 0 to 1."""
    points = COURSES.get(run.config.get("recipe", ""), {}) if published(run) else {}
    samples = IMAGENET["finetune"].images
    scale = {"epochs": 1.0, "samples": float(samples), "step": samples / COURSE_BATCH}.get(against)
    if not points or scale is None:
        return [], []
    return [epoch * scale for epoch in points], [top1 / 100 for top1 in points.values()]


def select(runs: Iterable[Run], *, recipe: str, tags: Mapping[str, str], parent: str) -> list[Run]:
    """Runs of a recipe (``b16`` or ``finetune b16``), with these tags, fine-tuned from this run (folder or name)."""
    return [
        run
        for run in runs
        if recipe in ("", run.recipe, run.config.get("recipe"))
        and all(run.tags.get(name) == value for name, value in tags.items())
        and parent in ("", run.parent, Path(run.parent).name)
    ]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Group runs that differ only in the seed into one row; fine-tunes follow their pretrain run.

    Sorted with the best first: the fine-tunes of a run, and the families by their best member.
    """
    runs = _told_apart(runs)
    by_kind: dict[tuple[object, int], list[Run]] = {}
    met: Counter[tuple[object, ...]] = Counter()
    for run in sorted(runs, key=lambda run: (run.name, run.path)):  # folders and servers list runs in different orders
        kind = _kind(run, runs)
        seed = (kind, run.parent, run.config.get("train.seed"))
        by_kind.setdefault((kind, met[seed]), []).append(run)  # a repeated seed or a copied run isn't a new seed
        met[seed] += 1
    found = [
        Row(
            _name(members),
            tuple(members),
            results=spreads(run.final for run in members),
            best=spreads(map(best_values, members)),
        )
        for members in by_kind.values()
    ]
    found.sort(key=rank)
    where = {run.path: row for row in found for run in row.runs}
    children: dict[int, list[Row]] = {}
    roots = []
    for row in found:
        above = where.get(row.first.parent)
        if above is None or above is row:
            roots.append(row)
        else:
            children.setdefault(id(above), []).append(row)

    def family(row: Row, depth: int = 0) -> list[Row]:
        below = [member for child in children.get(id(row), []) for member in family(child, depth + 1)]
        return [replace(row, depth=depth), *below]

    families = [family(root) for root in roots]
    families.sort(key=lambda family: min(map(rank, family)))  # a pretrain run may not have been evaluated
    return [row for family in families for row in family]


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Add to runs with the same name the part of their paths that differs: ``alice/b16``, ``bob/b16``."""
    paths: dict[str, list[tuple[str, ...]]] = {}
    for run in runs:
        paths.setdefault(run.name, []).append(Path(run.path).parts)
    found = []
    for run in runs:
        same = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths[run.name], strict=False))))
        end = "/".join(Path(run.path).parts[same:])
        longer = end if end.endswith(run.name) else f"{run.name} ({end})"
        found.append(replace(run, name=longer) if len(paths[run.name]) > 1 else run)
    return found


def _kind(run: Run, runs: Sequence[Run]) -> tuple[object, ...]:
    """A key that is equal for runs of one row: same configuration, code, data and start weights, trained to the end.

    Checkpoints at the same step of parents in one row count as the same start weights: seeds of a whole pipeline.
    """
    parent = next((other for other in runs if other.path == run.parent and other is not run), None)
    above: object = run.facts.get("origin")
    if parent is not None:
        above = (_kind(parent, [other for other in runs if other is not run]), run.parent_step)
    # facts hold the dataset digest and the origin, which compare data and parent better than paths do
    config = tuple(sorted((key, value) for key, value in run.config.items() if key not in UNLIKE_SEEDS))
    if not run.config or run.state != "finished":  # unknown configuration or another step: a row of its own
        config = (("path", run.path),)
    code = tuple(sorted(item for item in run.facts.items() if item[0].startswith(("code.", "package."))))
    return config, code, run.facts.get("dataset_digest"), run.facts.get("eval_data"), above


def _name(runs: Sequence[Run]) -> str:
    others = len(runs) - 1
    return f"{runs[0].name} and {others} other seed{'s' if others > 1 else ''}" if others else runs[0].name


def rank(row: Row) -> tuple[float, str]:
    """Sort key: top-1, the best first."""
    best = row.results.get("eval/top1")
    return (-best.mean if best else math.inf, row.name)


def best_values(run: Run) -> dict[str, float]:
    """The best finite value of each metric in BEST during the run."""
    values = {
        name: [line.metrics[name] for line in run.lines if math.isfinite(line.metrics.get(name, math.nan))]
        for name in BEST
    }
    return {name: BEST[name](found) for name, found in values.items() if found}


def spreads(finals: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean, standard deviation and count of each metric over the runs in which it is finite."""
    values: dict[str, list[float]] = {}
    for final in finals:
        for name, value in final.items():
            values.setdefault(name, [])
            if math.isfinite(value):
                values[name].append(value)
    return {
        name: Spread(
            statistics.fmean(found) if found else math.nan,
            statistics.stdev(found) if len(found) > 1 else math.nan,
            len(found),
        )
        for name, found in values.items()
    }


def differences(rows: Sequence[Row], kind: str = "config") -> dict[str, list[str]]:
    """The fields of ``config`` or ``facts`` that differ between rows, with each row's value.

    Dataset digests are shown with the datasets' names.
    """
    trees = [getattr(row.first, kind) for row in rows]
    names = sorted({name for tree in trees for name in tree if name not in HIDDEN})
    found = {name: [tree.get(name, "") for tree in trees] for name in names}
    shown = {name: values for name, values in found.items() if len(set(values)) > 1}
    return {
        name: [row.first.named(value) for row, value in zip(rows, values, strict=True)]
        for name, values in shown.items()
    }
