"""How figures are written in every form of the comparison. Pure."""

import math
from dataclasses import dataclass, replace

from pipeline.compare.rows import Row, Spread, published


@dataclass(frozen=True)
class Column:
    metric: str
    title: str
    form: str  # for str.format; {:%} forms are shown in percent


COLUMNS = (
    Column("eval/top1", "top-1 %", "{:.2%}"),
    Column("eval/top5", "top-5 %", "{:.2%}"),
    Column("eval/loss", "eval loss", "{:.4f}"),
    Column("train/loss", "train loss", "{:.4f}"),
    Column("speed/images_per_second", "img/s", "{:,.0f}"),
    Column("progress/epochs", "epochs", "{:.1f}"),
    Column("progress/device_hours", "device-hours", "{:,.3g}"),
    Column("progress/goodput", "goodput %", "{:.1%}"),
)


def number(column: Column, value: float) -> str:
    return "-" if math.isnan(value) else column.form.format(value).rstrip("%")  # the title has the unit


def cell(row: Row, column: Column) -> str:
    """``84.12``, or ``84.12 ± 0.10`` over seeds; ``-`` if there is no value."""
    return _text(row.results.get(column.metric), column)


def best_cell(row: Row, column: Column) -> str:
    """Like :func:`cell`, for the best values during the runs."""
    return _text(row.best.get(column.metric), column)


def _text(spread: Spread | None, column: Column) -> str:
    if spread is None:
        return "-"
    text = number(column, spread.mean)
    if spread.n < 2:
        return text
    shorter = replace(column, form=column.form.replace(".3g", ".2g"))
    return f"{text} ± {number(shorter, spread.std)}"


def label(row: Row) -> str:
    return "  " * row.depth + ("↳ " if row.depth else "") + row.name


def published_cell(row: Row) -> str:
    return ", ".join(published_texts(row))


def published_texts(row: Row) -> list[str]:
    """``83.97 (ViT paper, Table 5; +0.12)``: the value, its source, and this row's difference from it."""
    spread = row.results.get("eval/top1")
    texts = []
    for source, figure in published(row.first).items():
        ahead = f"; {100 * spread.mean - figure:+.2f}" if spread else ""
        texts.append(f"{figure:.2f} ({source}{ahead})")
    return texts
