"""Results of jobs.suite beside published figures of the nearest models: which rows and columns there are. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.compare.columns import Column, cell
from pipeline.compare.rows import Row
from pipeline.config.published_sets import PIXELS, PUBLISHED, SOURCE, Published, nearest

TITLE = "Test sets (vit suite): top-1 %"
_METRIC = re.compile(r"suite/(.+)/(top1|mce)")
_ORDER = list(next(iter(PUBLISHED.values())).top1)  # sets with published figures come first


@dataclass(frozen=True)
class SuiteRow:
    """One line of the table: a row of runs, or a published model."""

    name: str
    pixels: str  # side of the model's images
    texts: tuple[str, ...]  # by column; "-" for no result
    means: tuple[float | None, ...]  # the same as fractions, to sort by
    index: int | None  # of the row of runs; None for a published model


def suite_columns(rows: Sequence[Row]) -> list[Column]:
    """A column for each set that any row has a result of; ImageNet-C has a second one for its mCE."""
    found = {metric for row in rows for metric in row.results if _METRIC.fullmatch(metric)}
    return [Column(metric, _title(metric), "{:.2%}") for metric in sorted(found, key=_place)]


def _parts(metric: str) -> tuple[str, str]:
    match = _METRIC.fullmatch(metric)
    assert match is not None, metric
    return match[1], match[2]


def _title(metric: str) -> str:
    """Words between which a narrow column may be broken."""
    name, score = _parts(metric)
    return name.replace("-", " ") + (" mCE" if score == "mce" else "")


def _place(metric: str) -> tuple[int, list[str | int], str]:
    """Order of the columns: published sets, other sets by name, frozen features; numbers in names by value."""
    name, score = _parts(metric)
    if name in _ORDER:
        return _ORDER.index(name), [], score
    digits = [(int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", name)]
    return len(_ORDER) + name.startswith("features-"), digits, "" if score == "top1" else score


def published_sets(row: Row) -> Published | None:
    """The published model to hold a row's results against; ``None`` if it has none of the same sets."""
    config = row.first.config
    scale = config.get("model.layer_scale", "")
    found = nearest(config.get("model.variant", ""), layer_scale=scale not in ("", "0", "0.0"))
    if found is None or not any(f"suite/{name}/top1" in row.results for name in found.top1):
        return None
    return found


def published_top1(published: Published | None, column: Column) -> float | None:
    """In per cent; ``None`` if nothing was published."""
    name, score = _parts(column.metric)
    return published.top1.get(name) if published is not None and score == "top1" else None


def suite_rows(rows: Sequence[Row]) -> list[SuiteRow]:
    """The rows that have results, then each published model that they are held against. Empty without results."""
    columns = suite_columns(rows)
    found = [
        SuiteRow(
            row.name,
            row.first.config.get("model.image_size", "-"),
            tuple(cell(row, column) for column in columns),
            tuple(row.results[column.metric].mean if column.metric in row.results else None for column in columns),
            index,
        )
        for index, row in enumerate(rows)
        if any(column.metric in row.results for column in columns)
    ]
    held: dict[str, Published] = {}
    for row in rows:
        if (published := published_sets(row)) is not None:
            held[published.model] = published
    for published in held.values():
        figures = [published_top1(published, column) for column in columns]
        texts = tuple("-" if figure is None else f"{figure:.2f}" for figure in figures)
        means = tuple(None if figure is None else figure / 100 for figure in figures)
        found.append(SuiteRow(f"published: {published.model} ({SOURCE})", str(PIXELS), texts, means, None))
    return found
