"""Plots of runs, for screens and paper (PNG, SVG, PDF), in colours that colour-blind readers can tell apart."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipeline.compare.columns import COLUMNS
from pipeline.compare.rows import Row, course, rank
from pipeline.core import plotting
from pipeline.runs.curves import COLOURS, PERCENT, TITLES, _per_cent, _plain, limit_share, series

# Dashes tell curves apart in greyscale prints: on and off lengths in line widths
STYLES = ("-", "--", "-.", ":", (0, (9, 2)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (1, 3)))
REFERENCE = "#a0a0a0"  # a published curve: darker than OTHERS, and wider than any run's curve
OTHERS = "#d0d0d0"  # rows without a colour: between white and the palest one, also to the colour-blind and in greyscale
MOST_COLOURS = len(COLOURS)  # curves in colour; readers can't tell more apart
MOST_BARS = 40
WIDTH = 5.2  # inches: text stays readable when a phone shows the plot 4 inches wide
LONGEST_NAME = 26  # characters
CURVES = ("eval/top1", "train/loss", "eval/loss", "train/lr", "train/grad_norm")
BARS = ("eval/top1", "speed/images_per_second", "progress/goodput", "progress/device_hours")
BARS_PREFIX = "bars_"  # of the file names
AGAINST = {  # command-line name -> (source of the x axis, its title)
    "samples": ("samples", "samples seen"),
    "step": ("step", "steps"),
    "epochs": ("progress/epochs", "epochs"),
    "device-hours": ("progress/device_hours", "device-hours"),
}


def row_colours(rows: Sequence[Row]) -> dict[int, int]:
    """The index of each row's colour and dashes, by ``id`` of the row. Rows beyond the best are grey and have none."""
    best = {id(row) for row in sorted(rows, key=rank)[:MOST_COLOURS]}
    return {row: index for index, row in enumerate(id(row) for row in rows if id(row) in best)}


def draw_curves(rows: Sequence[Row], name: str, against: str) -> Figure | None:
    """One metric of all rows, one thin line per seed, the best rows in colour. None if no row has the metric.

    A row has the same colour in the plot of every metric, whichever rows have that metric.
    """
    colours = row_colours(rows)
    drawn = [row for row in rows if any(series(run.lines, name)[0] for run in row.runs)]
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Any] = []  # passed to the legend, which would skip names that begin with _
    labels: list[str] = []
    for row in reversed(drawn):
        index = colours.get(id(row), 0)
        coloured = id(row) in colours
        for number, run in enumerate(row.runs):
            xs, ys = series(run.lines, name, AGAINST[against][0])
            (curve,) = axes.plot(
                xs,
                ys,
                color=COLOURS[index] if coloured else OTHERS,
                linestyle=STYLES[index] if coloured else "-",
                linewidth=1.6 if coloured and len(row.runs) == 1 else 1.1,
                marker="." if len(xs) < 3 else "",
                zorder=3 if coloured else 1,
            )
            if coloured and number == 0:
                handles.append(curve)
                labels.append(_name(row))
    if name == "eval/top1":
        for recipe, (xs, ys) in {row.first.config.get("recipe"): course(row.first, against) for row in drawn}.items():
            if xs:
                (curve,) = axes.plot(xs, ys, color=REFERENCE, linewidth=3, zorder=0)
                handles.insert(0, curve)
                labels.insert(0, f"{recipe}, published")
    _plain(axes, TITLES.get(name, name), AGAINST[against][1])
    if against in ("samples", "step"):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 300k, 1.2M
    if name in PERCENT:
        limit_share(axes)
    grey = len(drawn) - sum(id(row) in colours for row in drawn)
    more = f"the best {MOST_COLOURS} by top-1 in colour, {grey} more in grey" if grey else None
    figure.legend(  # below the axes: inside them it would hide curves
        handles[::-1],
        labels[::-1],
        loc="outside lower left",
        ncols=2 if len(labels) > 2 else 1,
        frameon=False,
        handlelength=4,  # long enough to show each dash pattern
        fontsize=8,
        title=more,
        title_fontsize=8,
        alignment="left",
    )
    return figure


def draw_bars(rows: Sequence[Row], name: str) -> Figure | None:
    """A metric's final value by row, with the spread over seeds. None if no row has it."""
    drawn = [row for row in rows if name in row.results and math.isfinite(row.results[name].mean)][:MOST_BARS]
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 0.8 + 0.28 * len(drawn)), layout="constrained")
    axes = figure.add_subplot()
    means = [row.results[name].mean for row in drawn]
    errors = [0.0 if math.isnan(row.results[name].std) else row.results[name].std for row in drawn]
    names = ["    " * row.depth + _name(row) for row in drawn]
    indices = row_colours(rows)
    colours = [COLOURS[indices[id(row)]] if id(row) in indices else OTHERS for row in drawn]
    axes.barh(range(len(drawn)), means, xerr=errors if any(errors) else None, color=colours, ecolor="#555", height=0.7)
    column = next(column for column in COLUMNS if column.metric == name)
    for index, mean in enumerate(means):  # in a column of their own: beside the bars they would need a longer axis
        axes.text(1.02, index, column.form.format(mean), transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks(range(len(drawn)), names, fontsize=8)
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.05, y=0.02)
    axes.set_xlim(left=0)
    if "%" in column.form:
        axes.xaxis.set_major_formatter(_per_cent)
        axes.set_xlim(right=min(1.0, axes.get_xlim()[1]))
    _plain(axes, TITLES.get(name, name), "")
    return figure


def _name(row: Row) -> str:
    """The first run's name, shortened in the middle if long: names in a sweep mostly differ at their ends."""
    name, seeds = row.first.name, f" (n={len(row.runs)})" if len(row.runs) > 1 else ""
    return (name if len(name) <= LONGEST_NAME else f"{name[:9]}…{name[-(LONGEST_NAME - 10) :]}") + seeds


def draw_all(rows: Sequence[Row], against: str) -> dict[str, Figure]:
    """All plots, by file name without extension."""
    figures: dict[str, Figure | None] = {}
    for name in CURVES:
        figures[name.replace("/", "_")] = draw_curves(rows, name, against)
    for name in BARS:
        figures[BARS_PREFIX + name.replace("/", "_")] = draw_bars(rows, name)
    return {name: figure for name, figure in figures.items() if figure is not None}


def save(figure: Figure, path: Path) -> None:
    """Save as PNG, SVG or PDF, by the path's extension."""
    plotting.save(figure, path, dpi=150)
