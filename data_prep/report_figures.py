"""The plots of a dataset's report, as PNGs. They are drawn from counts, so the number of images doesn't matter."""

import io

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

mpl.use("Agg")

BLUE = "#2b6cb0"
SIDES = np.concatenate([np.arange(0, 2000, 25), [np.inf]])  # bin edges, pixels; the last bin holds all larger ones
KILOBYTES = np.concatenate([np.arange(0, 500, 5), [np.inf]])  # bin edges


def class_sizes(counts: npt.NDArray[np.int64]) -> bytes:
    """Plot the images per class, largest class first. ``counts`` by class index."""
    figure, axes = _new()
    ordered = np.sort(counts)[::-1]
    axes.stairs(ordered, np.arange(len(ordered) + 1), fill=True, color=BLUE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="classes, largest first", ylabel="images", ylim=(0, None), title="Images per class")
    axes.margins(x=0)
    return _png(figure)


def classes_by_size(counts: npt.NDArray[np.int64]) -> bytes:
    """Plot how many classes have how many images."""
    figure, axes = _new()
    step = max(1, -(-int(np.ptp(counts)) // 60))  # whole numbers, in at most 60 bars
    edges: list[float] = (np.arange(counts.min(), counts.max() + 2 * step, step) - 0.5).tolist()
    axes.hist(counts, bins=edges, color=BLUE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="images per class", ylabel="classes", title="Classes by size")
    return _png(figure)


def histogram(counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float64], title: str, unit: str) -> bytes:
    """Plot counts between ``edges``, the last of which is infinite."""
    figure, axes = _new()
    finite, width = edges[:-1], edges[1] - edges[0]
    axes.bar(finite, counts, width=width, align="edge", color=BLUE)
    last = np.flatnonzero(counts)
    end = finite[last[-1]] + width if len(last) else width
    axes.set(xlabel=f"{unit} (last bar: {finite[-1]:,.0f} and more)" if counts[-1] else unit, ylabel="images")
    axes.set(title=title, xlim=(0, end))
    return _png(figure)


def _new() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))  # counts
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
