"""Further counts of an evaluation: confusion between classes, and accuracy by ImageNet-ReaL's labels."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.core.files import naming, read_json_list
from pipeline.core.terminal import csv_cell
from pipeline.loader.batches import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 2000  # in a confusion matrix: 32 MB
MOST_NAMED = 30  # classes up to which a plot has names, and numbers in its cells
VALIDATION_KEY = re.compile(r"ILSVRC2012_val_(\d{8})")  # real.json has one entry per number, in order, from 1


class Tally:
    """Counts of one rank; :meth:`reduce` sums over the ranks. C classes."""

    def __init__(self, classes: int, device: torch.device, real: Mapping[int, frozenset[int]] | None = None) -> None:
        if classes > MOST_CLASSES:
            raise UserError(f"--out: a table of {classes} x {classes} classes is too large: leave out --out")
        self.confusion_CC = torch.zeros(classes, classes, dtype=torch.float64, device=device)  # [label, prediction]
        self._real = real
        self._counts = torch.zeros(2, dtype=torch.float64, device=device)  # ReaL: samples with labels, hits

    def see(self, logits_BC: torch.Tensor, batch: Batch) -> None:
        sound_B = ~logits_BC.isnan().any(1)  # as in evaluate: a NaN logit counts as wrong
        predicted_B = logits_BC.argmax(1)
        classes = len(self.confusion_CC)
        pairs_B = (batch.labels_B.to(predicted_B.device) * classes + predicted_B)[sound_B]
        self.confusion_CC += torch.bincount(pairs_B, minlength=classes**2).reshape(classes, classes)
        if self._real is not None:
            answers_B = torch.where(sound_B, predicted_B, -1)
            for row, prediction in zip(batch.samples_B.tolist(), answers_B.tolist(), strict=True):
                if valid := self._real[row]:
                    self._counts += torch.tensor([1.0, float(prediction in valid)], device=self._counts.device)

    def reduce(self, sum_over_ranks: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.confusion_CC = sum_over_ranks(self.confusion_CC)
        self._counts = sum_over_ranks(self._counts)

    @property
    def real(self) -> dict[str, float]:
        """ReaL accuracy: the prediction is one of the image's labels; images without labels don't count."""
        samples, hits = self._counts.tolist()
        return {"real_samples": samples, "real_top1": hits / samples} if samples else {}


def read_real(path: Path, keys: Sequence[str]) -> dict[int, frozenset[int]]:
    """Labels from google-research/reassessed-imagenet's real.json for each row of a split with these keys.

    Raises UserError if the split isn't ImageNet-2012's validation set.
    """
    content = read_json_list(path, "give --real reassessed-imagenet's real.json")
    if not all(isinstance(entry, list) for entry in content):
        raise UserError(f"--real {str(path)!r} is not a list of lists of classes: name reassessed-imagenet's real.json")
    labels = {}
    for row, key in enumerate(keys):
        match = VALIDATION_KEY.fullmatch(key.rsplit("/", 1)[-1])
        if match is None or not 1 <= int(match[1]) <= len(content):
            raise UserError(f"--real has no labels for sample {key!r}: evaluate ImageNet-2012's validation set")
        labels[row] = frozenset(content[int(match[1]) - 1])
    return labels


def per_class(confusion_CC: NDArray[np.float64], classes: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """One row per class, the worst first: samples, top-1 and the class most often predicted instead."""
    rows = []
    for index, (counts_C, names) in enumerate(zip(confusion_CC, classes, strict=True)):
        samples, hits = int(counts_C.sum()), int(counts_C[index])
        wrong_C = counts_C.copy()
        wrong_C[index] = 0
        mistaken = int(wrong_C.argmax())
        rows.append(
            {
                "index": index,
                "wnid": names["wnid"],
                "name": names["name"],
                "samples": samples,
                "top1": round(hits / samples, 6) if samples else "",
                "taken_for": classes[mistaken]["wnid"] if wrong_C.any() else "",
                "times": int(wrong_C[mistaken]),
            }
        )
    return sorted(rows, key=lambda row: (row["top1"] == "", row["top1"]))


def write(
    folder: Path, confusion_CC: NDArray[np.float64], classes: Sequence[Mapping[str, str]], ending: str = "png"
) -> None:
    """Write FOLDER/per_class.csv and the plot FOLDER/confusion.png (or .svg, .pdf: ``ending``)."""
    from pipeline.core import plotting  # slow to import

    folder.mkdir(parents=True, exist_ok=True)
    rows = per_class(confusion_CC, classes)
    table = folder / "per_class.csv"
    with naming(table), table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    plotting.save(draw_confusion(confusion_CC, classes), folder / f"confusion.{ending}", dpi=120)


def draw_confusion(confusion_CC: NDArray[np.float64], classes: Sequence[Mapping[str, str]]) -> "Figure":
    """The confusion matrix as a heat map; up to MOST_NAMED classes with names, counts and percentages of the class."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    named = len(classes) <= MOST_NAMED
    width = max(7.0, 0.55 * len(classes) + 3.0) if named else 7.0  # inches
    figure = Figure(figsize=(width, width - 1.0), layout="constrained")
    axes = figure.subplots()
    shares_CC = confusion_CC / np.maximum(confusion_CC.sum(1, keepdims=True), 1)
    image = axes.imshow(shares_CC, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="class", title="Share of each class's images")
    if named:
        names = [row["name"] or row["wnid"] for row in classes]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for label, prediction in np.argwhere(confusion_CC > 0):
            share = shares_CC[label, prediction]
            axes.text(
                prediction,
                label,
                f"{confusion_CC[label, prediction]:,.0f}\n{_percentage(share)}",
                ha="center",
                va="center",
                fontsize=8 if len(classes) <= 15 else 6,
                color="black" if share > 0.6 else "white",  # viridis is dark for low values and light for high ones
            )
    figure.colorbar(image, format=PercentFormatter(1.0))
    return figure


def _percentage(share: float) -> str:
    """Whole percent; 100 % only for all, 0 % only for none."""
    percent = 100 * share
    return "<1%" if percent < 1 else ">99%" if 99 < percent < 100 else f"{percent:.0f}%"
