"""Pictures of runs, for screens and paper: PNG and SVG by matplotlib, in colours that colour-blind readers can tell."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.spool import Line

# Okabe and Ito, "Color Universal Design" (2008); without the yellow, which vanishes on white paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":")  # a second mark beside colour, for prints in grey
TITLES = {
    "train/loss": "training loss",
    "eval/loss": "evaluation loss",
    "eval/top1": "top-1",
    "eval/top5": "top-5",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm",
    "speed/images_per_second": "images a second",
    "speed/data_wait": "share of time waiting for data",
    "progress/goodput": "goodput",
}


def series(lines: Sequence[Line], name: str, against: str = "step") -> tuple[list[float], list[float]]:
    """The values of one metric, with their ``against``: step, samples, or another metric such as progress/epochs."""
    xs, ys = [], []
    for line in lines:
        x = {"step": float(line.step), "samples": float(line.samples)}.get(against, line.metrics.get(against))
        if name in line.metrics and x is not None:
            xs.append(x)
            ys.append(line.metrics[name])
    return xs, ys


def draw_run(lines: Sequence[Line], title: str, path: Path) -> None:
    """One run's curves on a page."""
    present = {name for line in lines for name in line.metrics}
    names = [name for name in TITLES if name in present]
    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        xs, ys = series(lines, name, "samples")
        axes.plot(xs, ys, color=COLOURS[0], marker="." if len(xs) < 40 else "")
        axes.set_title(TITLES[name], loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if index >= len(names) - columns:
            axes.set_xlabel("samples seen")
    figure.suptitle(title, x=0.01, ha="left")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vit"}):  # text stays text; the same input, same bytes
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
