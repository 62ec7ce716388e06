"""Draw pipeline.svg: python docs/pictures/pipeline_figure.py. Its text stays text, to be searched and read aloud."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BLUE, GREEN, ORANGE, GREY = "#dbe9f6", "#dff0d8", "#fdebd0", "#eeeeee"
EDGE = "#777777"  # visible on light and dark pages
W, H = 2.55, 1.2  # width and height of a box

# name, commands, words, column, row, colour
BOXES = {
    "raw": ("raw images", "", "21K and 2012 tars,\nfolders, WebDataset", 0, 1, GREY),
    "shards": ("dataset", "vit shard", "verified, shuffled tars\n+ index.parquet", 1, 1, BLUE),
    "check": ("checks", "vit verify · report · overlap", "hashes, images,\nleaks into the test set", 1, 0, BLUE),
    "pretrain": ("pretraining", "vit pretrain", "DeepSpeed, any number\nof nodes, requeued", 2, 1, GREEN),
    "finetune": ("fine-tuning", "vit finetune", "higher resolution,\nother classes", 3, 1, GREEN),
    "plan": ("before", "vit doctor · plan", "is the cluster sound?\nmemory and hours", 2, 0, GREEN),
    "published": ("published weights", "", ".npz, timm,\ntransformers", 3, 0, GREY),
    "mlflow": ("tracking", "vit sync · compare · status", "run folder first,\nthen MLflow", 2, 2, ORANGE),
    "evaluate": ("evaluation", "vit evaluate", "exact on any number\nof processes", 3, 2, ORANGE),
    "export": ("export", "vit export", "timm, transformers, npz,\nONNX, torch.export", 4, 1, ORANGE),
    "predict": ("prediction", "vit predict", "images, folders, tars;\nwhere it looks", 4, 2, ORANGE),
}
ARROWS = [
    ("raw", "shards"), ("shards", "pretrain"), ("pretrain", "finetune"), ("finetune", "export"), ("shards", "check"),
    ("plan", "pretrain"), ("published", "finetune"), ("pretrain", "mlflow"), ("finetune", "evaluate"),
    ("export", "predict"),
]  # fmt: skip


def place(name: str) -> tuple[float, float]:
    """Lower left corner."""
    *_, column, row, _ = BOXES[name]
    return column * 3.05, (2 - row) * 1.75


def box(axes: Axes, name: str) -> None:
    title, commands, words, *_, colour = BOXES[name]
    x, y = place(name)
    axes.add_patch(FancyBboxPatch((x, y), W, H, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, ec=EDGE, lw=0.8))
    top = y + H - 0.21
    axes.text(x + W / 2, top, title, ha="center", va="center", weight="bold", size=10)
    if commands:
        size = 8 if len(commands) <= 24 else 6.8
        axes.text(
            x + W / 2, top - 0.27, commands, ha="center", va="center", family="monospace", size=size, color="#224488"
        )
    axes.text(x + W / 2, y + 0.35, words, ha="center", va="center", size=8.5, linespacing=1.25)


def arrow(axes: Axes, one: str, other: str) -> None:
    (x1, y1), (x2, y2) = place(one), place(other)
    if y1 == y2:
        ends = ((x1 + W, y1 + H / 2), (x2, y2 + H / 2))
    else:
        down = y2 < y1
        ends = ((x1 + W / 2, y1 if down else y1 + H), (x2 + W / 2, y2 + H if down else y2))
    axes.add_patch(
        FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=EDGE, lw=1.1, shrinkA=1, shrinkB=1)
    )


def main() -> None:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pipeline", "font.family": "sans-serif"})
    figure = Figure(figsize=(11.2, 3.9))
    axes = figure.add_axes((0, 0, 1, 1))
    for pair in ARROWS:
        arrow(axes, *pair)
    for name in BOXES:
        box(axes, name)
    axes.set(xlim=(-0.15, 4 * 3.05 + W + 0.15), ylim=(-0.15, 2 * 1.75 + H + 0.15))
    axes.set_axis_off()
    path = Path(__file__).with_name("pipeline.svg")
    figure.savefig(
        path,
        transparent=True,
        metadata={"Date": None, "Title": "From raw images to models: the commands and what they make"},
    )


if __name__ == "__main__":
    main()
