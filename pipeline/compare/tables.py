"""The comparison as a table: for the terminal, CSV, JSON, LaTeX. Pure."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from pipeline.compare.columns import COLUMNS, Column, cell, label, published_cell
from pipeline.compare.rows import Row, differences, published
from pipeline.core.terminal import csv_cell

MOST_ROWS = 60  # in a terminal
NAME = 16  # characters that a run's name has at least before it is folded
PUBLISHED = 24  # the same of published figures with their sources
WIDE = 100  # characters of a window that has room for these
GAP = 2  # between columns


def terminal(rows: Sequence[Row], *, width: int, everything: bool = False) -> list[Table]:
    """The results, then what differs between the rows in configuration, data and code.

    In a window ``width`` characters wide names are folded, figures never: columns without room are named below.
    """
    shown = rows if everything else rows[:MOST_ROWS]
    columns = [column for column in COLUMNS if any(column.metric in row.results for row in rows)]
    any_published = any(published(row.first) for row in rows)
    with_published = any_published and width >= WIDE
    heads = [max(map(len, texts)) for texts in zip(("state", "step"), *map(_state, shown), strict=True)]
    room = width - sum(size + GAP for size in heads) - (PUBLISHED + GAP if with_published else 0)
    sizes = _fitting(columns, shown, room - NAME)
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
        notes.append(f"{len(rows) - len(shown)} more rows: --all, or choose with --recipe, --tag, --parent")
    left = [column.title for column in columns[len(sizes) :]]
    left += ["published"] if any_published and not with_published else []
    if left:
        notes.append(f"no room for {', '.join(left)}: a wider window, --csv, --json or --html")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    tables = [table]
    for title, kind in (("Configuration: what differs", "config"), ("Data and code: what differs", "facts")):
        found = differences(rows, kind)
        if found and len(rows) > 1:
            tables.append(_differences(title, found, rows))
    return tables


def _fitting(columns: Sequence[Column], rows: Sequence[Row], room: int) -> dict[Column, int]:
    """The first of the columns that fit into ``room`` characters, with their widths; titles may be folded."""
    found: dict[Column, int] = {}
    for column in columns:
        size = max(*(len(cell(row, column)) for row in rows), *map(len, column.title.split()), 1)
        room -= size + GAP
        if room < 0:
            break
        found[column] = size
    return found


def _state(row: Row) -> tuple[str, str]:
    states = sorted({run.state for run in row.runs})
    return "/".join(states), f"{row.first.lines[-1].step:,}" if row.first.lines else "0"


def _differences(title: str, found: dict[str, list[str]], rows: Sequence[Row]) -> Table:
    """Fields down, runs across; where there are many runs, the values and how many have each."""
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
    """One JSON-able dict a row: name, runs, parent, every metric's mean, std and n, published figures, what differs."""
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
                **{kind: {name: values[index] for name, values in items.items()} for kind, items in changed.items()},
            }
        )
    return found


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def to_json(rows: Sequence[Row]) -> str:
    return json.dumps(records(rows), indent=1, allow_nan=False) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """One line a row; three columns a metric."""
    metrics = sorted({name for row in rows for name in row.results})
    changed = {name: values for kind in ("config", "facts") for name, values in differences(rows, kind).items()}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [f"{name}.{part}" for name in metrics for part in ("mean", "std", "n")]
    writer.writerow(["name", "recipe", "parent", "runs", "state", "step", *heads, *changed])
    for index, row in enumerate(rows):
        values: list[object] = []
        for name in metrics:
            spread = row.results.get(name)
            values += (
                ["" if math.isnan(value) else value for value in (spread.mean, spread.std)] if spread else ["", ""]
            )
            values.append(spread.n if spread else "")
        state, step = _state(row)
        head = [row.name, row.first.recipe, row.first.parent, len(row.runs), state, step.replace(",", "")]
        writer.writerow([*map(csv_cell, head), *values, *(csv_cell(items[index]) for items in changed.values())])
    return out.getvalue()


def to_latex(rows: Sequence[Row]) -> str:
    """A booktabs table of the results, ready for a paper."""
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
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


_LATEX = {letter: f"\\{letter}" for letter in "#$%&_{}"} | {
    "\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}",
    "<": "\\textless{}", ">": "\\textgreater{}",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
