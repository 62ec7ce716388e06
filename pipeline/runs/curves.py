"""The curves of one run: loss, accuracy, learning rate over steps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipeline.core import plotting
from pipeline.runs.records import Line

# Okabe and Ito, "Color Universal Design" (2008); without the yellow, which vanishes on white paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
RUN_CURVES = (
    "eval/top1", "train/loss", "eval/loss", "eval/top5", "train/lr", "train/grad_norm",
    "speed/images_per_second", "speed/data_wait", "progress/goodput",
)  # fmt: skip
PERCENT = ("eval/top1", "eval/top5", "progress/goodput", "speed/data_wait")
TITLES = {
    "train/loss": "training loss",
    "eval/loss": "evaluation loss",
    "eval/top1": "top-1",
    "eval/top5": "top-5",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
    "speed/images_per_second": "images per second",
    "speed/data_wait": "share of time waiting for data",
    "progress/goodput": "goodput (device time in useful steps)",
    "progress/device_hours": "device-hours",
}


def series(lines: Sequence[Line], name: str, against: str = "step") -> tuple[list[float], list[float]]:
    """The finite values of one metric, with their ``against``: step, samples or another metric."""
    xs, ys = [], []
    for line in lines:
        x = {"step": float(line.step), "samples": float(line.samples)}.get(against, line.metrics.get(against))
        if x is not None and math.isfinite(line.metrics.get(name, math.nan)):
            xs.append(x)
            ys.append(line.metrics[name])
    return xs, ys


def draw_run(lines: Sequence[Line], path: Path) -> None:
    """One run's curves, 900 pixels wide, for the run's description in MLflow."""
    names = [name for name in RUN_CURVES if series(lines, name)[0]]
    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(9, 2.3 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        xs, ys = series(lines, name, "samples")
        axes.plot(xs, ys, color=COLOURS[0], linewidth=1.2, marker="." if len(xs) < 40 else "")
        title = TITLES[name].partition(" (")[0]
        _plain(axes, title, "samples seen" if index >= len(names) - columns else "")
        axes.title.set_fontsize(9)
        axes.xaxis.label.set_fontsize(8)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if name in PERCENT:
            limit_share(axes)
    plotting.save(figure, path, dpi=100)


def _per_cent(value: float, _: float) -> str:
    return f"{100 * value:.6g}%"


def _plain(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(below)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def limit_share(axes: Any) -> None:
    """A y axis in percent, within 0 to 100."""
    axes.yaxis.set_major_formatter(_per_cent)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, bottom), min(1.0, top))
