"""The numbers behind compare.html's curves, as one JSON document small enough for 200 runs. Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare.plots import AGAINST, STYLES, row_colours
from pipeline.compare.read_runs import Run
from pipeline.compare.rows import Row, course
from pipeline.runs.curves import PERCENT, RUN_CURVES, TITLES, series
from pipeline.runs.records import Line

MOST_POINTS = 40_000  # over all runs: keeps the page at a few MB, so that it opens within two seconds
FEWEST_POINTS = 100  # per run
DIGITS = 6  # significant digits of the values
AXES = {name: (title, source) for name, (source, title) in AGAINST.items()} | {
    "hours": ("hours since the run's first log line", "hours")
}


def page_data(rows: Sequence[Row], against: str) -> dict[str, Any]:
    """What page.js reads: axes, metrics, colours, each run's columns, and published curves to draw beside them.

    A run's columns have one entry per kept log line, null where the line lacks the value.
    """
    runs = [run for row in rows for run in row.runs]
    metrics = [name for name in RUN_CURVES if any(series(run.lines, name)[0] for run in runs)]
    most = max(FEWEST_POINTS, MOST_POINTS // max(len(runs), 1))
    colours = row_colours(rows)
    return {
        "against": against,
        "axes": [[name, title] for name, (title, _) in AXES.items()],
        "metrics": [{"name": name, "title": TITLES[name], "percent": name in PERCENT} for name in metrics],
        "dashes": [list(style[1]) if isinstance(style, tuple) else _DASHES[style] for style in STYLES],
        "rows": [
            {
                "name": row.name,
                "colour": colours.get(id(row), -1),
                "runs": [_columns(run, metrics, most) for run in row.runs],
            }
            for row in rows
        ],
        "references": _references(rows) if "eval/top1" in metrics else [],
    }


def _references(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The published curves of these fine-tuning runs, one per recipe: the rows that each belongs to, top-1, and x by
    axis (only axes that a published epoch can be converted to)."""
    found: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        courses = {axis: course(row.first, axis) for axis in AXES}
        xs = {axis: xs for axis, (xs, _) in courses.items() if xs}
        if xs and any(series(run.lines, "eval/top1")[0] for run in row.runs):
            recipe = row.first.config["recipe"]
            reference = {"name": f"{recipe}, published", "rows": [], "x": xs, "y": courses["epochs"][1]}
            found.setdefault(recipe, {"metric": "eval/top1"} | reference)["rows"].append(index)
    return list(found.values())


_DASHES = {"-": [], "--": [4, 2], "-.": [6, 2, 1, 2], ":": [1, 2]}  # as STYLES: on and off lengths in line widths


def to_script(data: Mapping[str, Any]) -> str:
    """JSON that is safe inside <script>, whatever names it contains: no ``<``, ``>`` or ``&``."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _columns(run: Run, metrics: Sequence[str], most: int) -> dict[str, Any]:
    lines = thinned(run.lines, most)
    began = run.lines[0].time if run.lines else 0.0
    sources: dict[str, list[Any]] = {
        "samples": [line.samples for line in lines],
        "step": [line.step for line in lines],
        "epochs": [_value(line, "progress/epochs") for line in lines],
        "device-hours": [_value(line, "progress/device_hours") for line in lines],
        "hours": [_rounded((line.time - began) / 3600) for line in lines],
    }
    values = {name: [_value(line, name) for line in lines] for name in metrics}
    return {
        "name": run.name,
        "x": {name: column for name, column in sources.items() if any(value is not None for value in column)},
        "y": {name: column for name, column in values.items() if any(value is not None for value in column)},
    }


def thinned(lines: Sequence[Line], most: int) -> list[Line]:
    """About ``most`` of the lines, in order. Each bucket of consecutive lines keeps those with the lowest and
    highest training loss and top-1, so that no spike is lost. The first and the last line are always kept."""
    if len(lines) <= most:
        return list(lines)
    size = -(-4 * len(lines) // most)  # each bucket keeps up to four
    kept = {0, len(lines) - 1}
    for start in range(0, len(lines), size):
        bucket = range(start, min(start + size, len(lines)))
        for name in ("train/loss", "eval/top1"):
            found = [index for index in bucket if math.isfinite(lines[index].metrics.get(name, math.nan))]
            if found:
                kept.add(min(found, key=lambda index: lines[index].metrics[name]))
                kept.add(max(found, key=lambda index: lines[index].metrics[name]))
    return [lines[index] for index in sorted(kept)]


def _value(line: Line, name: str) -> float | None:
    return _rounded(line.metrics.get(name, math.nan))


def _rounded(value: float) -> float | None:
    """The value with six significant digits; None for NaN, which JSON lacks."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
