"""The comparison as a table: terminal, CSV, JSON, LaTeX. Pure."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.compare.columns import COLUMNS, Column, cell, label, published_cell
from pipeline.compare.rows import Row, differences, published
from pipeline.compare.suite_rows import TITLE, published_sets, published_top1, suite_columns, suite_rows
from pipeline.config.published_sets import PIXELS, SOURCE
from pipeline.core.terminal import csv_cell

MOST_ROWS = 60  # in a terminal
NAME = 16  # least characters of a run's name before it is wrapped
PUBLISHED = 24  # least characters of published values with their sources
WIDE = 100  # window width, in characters, from which published values are shown
GAP = 2  # between columns


def terminal(rows: Sequence[Row], *, width: int, everything: bool = False) -> list[Table]:
    """The results, then those on test sets, then what differs between the rows in configuration, data and code.

    Names are wrapped to fit ``width`` characters, numbers never: columns that don't fit are named below the table.
    """
    shown = rows if everything else rows[:MOST_ROWS]
    columns = [column for column in COLUMNS if any(column.metric in row.results for row in rows)]
    any_published = any(published(row.first) for row in rows)
    with_published = any_published and width >= WIDE
    heads = [max(map(len, texts)) for texts in zip(("state", "step"), *map(_state, shown), strict=True)]
    room = width - sum(size + GAP for size in heads) - (PUBLISHED + GAP if with_published else 0)
    sizes = _fitting({column: [cell(row, column) for row in shown] for column in columns}, room - NAME)
    names = min(max(NAME, room - sum(size + GAP for size in sizes.values())), max(len(label(row)) for row in shown))
    count = sum(len(row.runs) for row in rows)
    table = Table(title=f"{count} run{'s' * (count > 1)}", title_justify="left", box=None, pad_edge=False)
    table.add_column("run", width=max(names, len("run")), overflow="fold")
    for title, size in zip(("state", "step"), heads, strict=True):
        table.add_column(title, width=size, justify="right" if title == "step" else "left")
    for column, size in sizes.items():
        table.add_column(column.title, width=size, justify="right")
    if with_published:
        table.add_column("published", overflow="fold")
    for row in shown:
        name = textwrap.fill(label(row), max(names, 8), subsequent_indent="  " * (row.depth + 1) if row.depth else "")
        values = [cell(row, column) for column in sizes]
        more = [published_cell(row)] if with_published else []
        table.add_row(*(escape(text) for text in (name, *_state(row), *values, *more)))
    notes = []
    if len(rows) > len(shown):
        notes.append(f"{len(rows) - len(shown)} more rows: use --all, or filter with --recipe, --tag, --parent")
    left = [column.title for column in columns[len(sizes) :]]
    left += ["published"] if any_published and not with_published else []
    notes += _no_room(left)
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    tables = [table, *_test_sets(shown, width)]
    for title, kind in (("Configuration: what differs", "config"), ("Data and code: what differs", "facts")):
        found = differences(rows, kind)
        if found and len(rows) > 1:
            tables.append(_differences(title, found, rows))
    return tables


def _test_sets(rows: Sequence[Row], width: int) -> list[Table]:
    """Runs and published models down, sets across; nothing if jobs.suite has evaluated none of the runs.

    In a narrow window the spread over seeds stands below the mean.
    """
    shown, columns = suite_rows(rows), suite_columns(rows)
    if not shown:
        return []
    pixels = max(len(row.pixels) for row in shown)
    room = width - pixels - GAP
    for spread in (" ± ", "\n± "):
        lines = [[text.replace(" ± ", spread) for text in row.texts] for row in shown]
        parts = {
            column: "\n".join(cells).split("\n")
            for column, cells in zip(columns, zip(*lines, strict=True), strict=True)
        }
        sizes = _fitting(parts, room - NAME)
        if len(sizes) == len(columns):
            break
    names = min(max(NAME, room - sum(size + GAP for size in sizes.values())), max(len(row.name) for row in shown))
    table = Table(title=TITLE, title_justify="left", box=None, pad_edge=False)
    table.add_column("run", width=names)
    table.add_column("px", width=pixels, justify="right")
    for column, size in sizes.items():
        table.add_column(column.title, width=size, justify="right")
    for row, cells in zip(shown, lines, strict=True):
        name = textwrap.fill(row.name, names, subsequent_indent="  ")
        table.add_row(escape(name), row.pixels, *cells[: len(sizes)])
    table.caption = "\n".join(_no_room([column.title for column in columns[len(sizes) :]])) or None
    table.caption_justify = "left"
    return [table]


def _no_room(titles: Sequence[str]) -> list[str]:
    return [f"no room for {', '.join(titles)}: a wider window, --csv, --json or --html"] if titles else []


def _fitting(texts: Mapping[Column, Sequence[str]], room: int) -> dict[Column, int]:
    """The leading columns that fit into ``room`` characters, with their widths; titles may be wrapped."""
    found: dict[Column, int] = {}
    for column, cells in texts.items():
        size = max(*map(len, cells), *map(len, column.title.split()), 1)
        room -= size + GAP
        if room < 0:
            break
        found[column] = size
    return found


def _state(row: Row) -> tuple[str, str]:
    states = sorted({run.state for run in row.runs})
    return "/".join(states), f"{row.first.lines[-1].step:,}" if row.first.lines else "0"


def _differences(title: str, found: dict[str, list[str]], rows: Sequence[Row]) -> Table:
    """One line per field and one column per row; if there are many rows, the values and how many rows have each."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("field", overflow="fold")
    if len(rows) <= 6:
        for row in rows:
            table.add_column(escape(row.name), overflow="fold")
        for name, values in found.items():
            table.add_row(*(escape(text) for text in (name, *values)))
        return table
    table.add_column("values (rows that have it)", overflow="fold")
    for name, values in found.items():
        counts = {value: values.count(value) for value in sorted(set(values))}
        most = sorted(counts.items(), key=lambda item: -item[1])
        text = ", ".join(f"{value or 'none'} ({count})" for value, count in most[:6])
        table.add_row(escape(name), escape(text + (f" and {len(most) - 6} more" if len(most) > 6 else "")))
    return table


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One JSON-able dict per row: name, runs, parent, each metric's mean, std, n, published figures, what differs."""
    changed = {kind: differences(rows, kind) for kind in ("config", "facts")}
    found = []
    for index, row in enumerate(rows):
        found.append(
            {
                "name": row.name,
                "recipe": row.first.recipe,
                "parent": row.first.parent,
                "runs": [{"name": run.name, "path": run.path, "state": run.state} for run in row.runs],
                "step": row.first.lines[-1].step if row.first.lines else 0,
                "samples": row.first.lines[-1].samples if row.first.lines else 0,
                "metrics": {
                    name: {"mean": _plain(spread.mean), "std": _plain(spread.std), "n": spread.n}
                    for name, spread in row.results.items()
                },
                "best": {name: _plain(spread.mean) for name, spread in row.best.items()},
                "published_top1_percent": published(row.first),
                "published_test_sets": _published_test_sets(row),
                **{kind: {name: values[index] for name, values in items.items()} for kind, items in changed.items()},
            }
        )
    return found


def _published_test_sets(row: Row) -> dict[str, Any]:
    """Empty if there are none."""
    found = published_sets(row)
    if found is None:
        return {}
    return {"model": found.model, "image_size": PIXELS, "source": SOURCE, "top1_percent": found.top1}


def _plain(value: float) -> float | None:
    """None for NaN and inf, which JSON lacks."""
    return value if math.isfinite(value) else None


def to_json(rows: Sequence[Row]) -> str:
    return json.dumps(records(rows), indent=1, allow_nan=False) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """One line per row; three columns per metric, and for a test set one of the published top-1 in per cent."""
    metrics = sorted({name for row in rows for name in row.results})
    changed = {name: values for kind in ("config", "facts") for name, values in differences(rows, kind).items()}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{name}.{part}" for name in metrics for part in ("mean", "std", "n")]
    held = [published_sets(row) for row in rows]
    sets = [column for column in suite_columns(rows) if any(published_top1(found, column) for found in held)]
    heads += [f"{column.metric}.published_percent" for column in sets] + (["published_model"] if sets else [])
    writer.writerow(["name", "recipe", "parent", "runs", "state", "step", *heads, *changed])
    for index, row in enumerate(rows):
        values: list[object] = []
        for name in metrics:
            spread = row.results.get(name)
            values += (
                ["" if math.isnan(value) else value for value in (spread.mean, spread.std)] if spread else ["", ""]
            )
            values.append(spread.n if spread else "")
        if sets:
            values += [published_top1(held[index], column) or "" for column in sets]
            values.append(f"{found.model} at {PIXELS} px ({SOURCE})" if (found := held[index]) else "")
        state, step = _state(row)
        head = [row.name, row.first.recipe, row.first.parent, len(row.runs), state, step.replace(",", "")]
        writer.writerow([*map(csv_cell, head), *values, *(csv_cell(items[index]) for items in changed.values())])
    return out.getvalue()


def to_latex(rows: Sequence[Row]) -> str:
    """Booktabs tables of the results and, if there are any, of those on test sets: ready for a paper."""
    columns = [column for column in COLUMNS if any(column.metric in row.results for row in rows)]
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(columns) + 1)}}}",
        "\\toprule",
        " & ".join(["Run", "Published", *(_escaped(column.title.capitalize()) for column in columns)]) + " \\\\",
        "\\midrule",
    ]
    for row in rows:
        indent = "\\quad " * row.depth
        values = [_escaped(cell(row, column)).replace("±", "$\\pm$") for column in columns]
        figures = " / ".join(f"{value:.2f}" for value in published(row.first).values()) or "--"
        lines.append(" & ".join([indent + _escaped(row.name), figures, *values]) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", *_latex_test_sets(rows)]
    return "\n".join(lines) + "\n"


def _latex_test_sets(rows: Sequence[Row]) -> list[str]:
    shown, columns = suite_rows(rows), suite_columns(rows)
    if not shown:
        return []
    lines = [f"\\begin{{tabular}}{{lr{'r' * len(columns)}}}", "\\toprule"]
    lines += [" & ".join(["Run", "px", *(_escaped(column.title) for column in columns)]) + " \\\\", "\\midrule"]
    for row in shown:
        texts = [_escaped(text).replace("±", "$\\pm$").replace("-", "--") for text in row.texts]
        lines.append(" & ".join([_escaped(row.name), row.pixels, *texts]) + " \\\\")
    return [*lines, "\\bottomrule", "\\end{tabular}"]


_LATEX = {letter: f"\\{letter}" for letter in "#$%&_{}"} | {
    "\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}",
    "<": "\\textless{}", ">": "\\textgreater{}",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
