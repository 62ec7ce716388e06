"""The comparison as one HTML page that needs no other file: a table, bars and interactive curves.

Tables and bars are plain HTML and work without JavaScript. page.js adds the curves, and showing, filtering and sorting
rows; page.css is the style. Run names are untrusted text: escaped here, inserted as text nodes in page.js, and the
page's Content-Security-Policy allows no script but the two embedded ones.
"""

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.compare.columns import COLUMNS, Column, best_cell, cell, label, published_texts
from pipeline.compare.page_data import page_data, to_script
from pipeline.compare.plots import BARS, MOST_BARS, row_colours
from pipeline.compare.rows import BEST, Row, differences, published
from pipeline.compare.suite_rows import TITLE, suite_columns, suite_rows
from pipeline.runs.curves import COLOURS, TITLES

HERE = Path(__file__).parent
DARK_BLACK = "#ececec"  # black on a dark background
MOST_ROWS_ACROSS = 6  # in the tables of differences; more rows are listed vertically


def page(rows: Sequence[Row], title: str, made: str, against: str = "samples") -> str:
    """The page's HTML. ``made``: date and command for the footer. ``against``: the curves' initial x axis."""
    data = page_data(rows, against)
    scripts = [
        (HERE / "uplot" / "uPlot.iife.min.js").read_text(encoding="utf-8"),
        (HERE / "page.js").read_text(encoding="utf-8"),
    ]
    style = (
        (HERE / "uplot" / "uPlot.min.css").read_text(encoding="utf-8")
        + _palette()
        + (HERE / "page.css").read_text(encoding="utf-8")
    )
    runs = sum(len(row.runs) for row in rows)
    counts = f"{runs} run{'s' * (runs > 1)} in {len(rows)} row{'s' * (len(rows) > 1)}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{counts}. Runs that differ only in the seed share a row (mean ± standard deviation). "
        "A fine-tune is listed under the run it started from.</p>",
        _TABLE_CONTROLS,
        _results(rows),
        *_test_sets(rows),
        "<h2>Curves</h2>",
        "<noscript><p>The curves need JavaScript, which is switched off here.</p></noscript>",
        _CURVE_CONTROLS if data["metrics"] else "<p>No run has logged a metric yet.</p>",
        '<div id="charts"></div>',
        *_bars(rows),
    ]
    if len(rows) > 1:
        parts += _difference("Configuration: what differs", differences(rows), rows)
        parts += _difference("Data and code: what differs", differences(rows, "facts"), rows)
    parts.append(f"<p>{html.escape(made)}</p>")
    parts.append(f'<script type="application/json" id="data">{to_script(data)}</script>')
    parts += [f"<script>{script}</script>" for script in scripts]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>\n'
        f"<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


_TABLE_CONTROLS = """<div class="controls needs-script" hidden>
<input type="search" id="filter" placeholder="Filter: words in any column" aria-label="Filter the runs">
<button type="button" id="all">Show all</button> <button type="button" id="best">Show the best</button>
<button type="button" id="none">Hide all</button> <span id="count" role="status"></span></div>"""
_CURVE_CONTROLS = """<div class="controls needs-script" hidden><label>x axis <select id="axis"></select></label>
<label>smoothing <input type="range" id="smoothing" min="0" max="0.99" step="0.01" value="0">
<output id="weight">0.00</output></label> <label><input type="checkbox" id="log"> log scale</label>
<button type="button" id="zoomed" hidden>Reset zoom</button></div>
<div class="controls needs-script" id="metrics" role="group" aria-label="Metrics" hidden></div>
<p class="needs-script" hidden>One line per seed. Drag to zoom, double-click to reset. With the keyboard, the arrow keys
move along and between the curves.</p>"""


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _palette() -> str:
    light = "".join(f"--c{index}:{colour};" for index, colour in enumerate(COLOURS))
    dark = "".join(f"--c{index}:{dark_colour(colour)};" for index, colour in enumerate(COLOURS))
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def dark_colour(colour: str) -> str:
    """The curve's colour on a dark background."""
    return DARK_BLACK if colour == "#000000" else colour


def _results(rows: Sequence[Row]) -> str:
    columns = [column for column in COLUMNS if any(column.metric in row.results for row in rows)]
    with_published = any(published(row.first) for row in rows)
    heads = "".join(_heads(column) for column in columns) + ("<th>published top-1 %</th>" if with_published else "")
    colours = row_colours(rows)
    body = []
    for index, row in enumerate(rows):
        states = "/".join(sorted({run.state for run in row.runs}))
        step = row.first.lines[-1].step if row.first.lines else 0
        cells = [
            f"<td>{html.escape(row.first.recipe)}</td><td>{html.escape(row.first.dataset)}</td>"
            f'<td>{html.escape(states)}</td><td class="n" data-value="{step}">{step:,}</td>',
            *(_cells(row, column) for column in columns),
        ]
        if with_published:
            cells.append(f"<td>{_published(row)}</td>")
        swatch = '<svg class="swatch" viewBox="0 0 32 8" aria-hidden="true"><line x1="0" y1="4" x2="32" y2="4"/></svg>'
        name = html.escape(label(row).strip())
        style = f"--depth:{row.depth};--c:{_colour(colours.get(id(row)))}"
        body.append(f'<tr data-row="{index}" style="{style}"><th scope="row">{swatch}{name}</th>{"".join(cells)}</tr>')
    head = "".join(f"<th>{name}</th>" for name in ("run", "recipe", "dataset", "state")) + '<th class="n">step</th>'
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Results"><table class="results sortable"><thead>'
        f"<tr>{head}{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _test_sets(rows: Sequence[Row]) -> list[str]:
    """Runs and published models down, sets across; nothing if jobs.suite has evaluated none of the runs."""
    shown = suite_rows(rows)
    if not shown:
        return []
    heads = "".join(f'<th class="n">{html.escape(column.title)}</th>' for column in suite_columns(rows))
    body = []
    for row in shown:
        cells = f'<td class="n" data-value="{html.escape(row.pixels)}">{html.escape(row.pixels)}</td>'
        for text, mean in zip(row.texts, row.means, strict=True):
            cells += _value_cell(text, mean)
        of = "" if row.index is None else f' data-row="{row.index}"'
        kind = ' class="published"' if row.index is None else ""
        name = html.escape(row.name)
        body.append(f'<tr{of}{kind}><th scope="row">{name}</th>{cells}</tr>')
    return [
        f"<h2>{html.escape(TITLE)}</h2>",
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(TITLE)}"><table class="sortable">'
        f'<thead><tr><th>run</th><th class="n">px</th>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>',
    ]


def _value_cell(text: str, mean: float | None) -> str:
    """``mean``: what the page sorts by. A narrow column breaks before the ±, not after."""
    value = f' data-value="{mean!r}"' if mean is not None and math.isfinite(mean) else ""
    return f'<td class="n"{value}>{html.escape(text).replace("± ", "±&nbsp;")}</td>'


def _heads(column: Column) -> str:
    title = html.escape(column.title)
    best = f'<th class="n">best {title}</th>' if column.metric in BEST else ""
    return f'<th class="n">{title}</th>{best}'


def _cells(row: Row, column: Column) -> str:
    """The last value, and the best if one is better than another."""
    texts = [(cell(row, column), row.results)]
    if column.metric in BEST:
        texts.append((best_cell(row, column), row.best))
    found = ""
    for text, spreads in texts:
        found += _value_cell(text, spreads[column.metric].mean if column.metric in spreads else None)
    return found


def _published(row: Row) -> str:
    """One line per source."""
    lines = "".join(f"<span>{html.escape(text)}</span>" for text in published_texts(row))
    return lines or "-"


def _colour(index: int | None) -> str:
    return "var(--others)" if index is None else f"var(--c{index})"


def _bars(rows: Sequence[Row]) -> list[str]:
    """Bars of each row's last value of some metrics. The axis ends at 100 % for shares, else at the largest value."""
    colours = row_colours(rows)
    figures = []
    for column in (column for column in COLUMNS if column.metric in BARS):
        values = {
            index: row.results[column.metric].mean
            for index, row in enumerate(rows)
            if column.metric in row.results and math.isfinite(row.results[column.metric].mean)
        }
        if not values:
            continue
        largest = 1.0 if "%" in column.form else max(values.values()) or 1.0
        lines = ""
        for index, value in list(values.items())[:MOST_BARS]:
            row = rows[index]
            share = max(0.0, min(1.0, value / largest))
            style = f"--share:{share:.2%};--c:{_colour(colours.get(id(row)))}"
            lines += (
                f'<div class="bar" data-row="{index}" style="{style}"><span title="{html.escape(row.name)}">'
                f"{html.escape(row.name)}</span><div><i></i></div><span>{html.escape(cell(row, column))}</span></div>"
            )
        unit = " (%)" if "%" in column.form else ""
        figures.append(f"<figure><figcaption>{html.escape(TITLES[column.metric])}{unit}</figcaption>{lines}</figure>")
    return ["<h2>Final results (mean ± std over seeds)</h2>", f'<div class="bars">{"".join(figures)}</div>']


def _difference(title: str, found: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> list[str]:
    """A collapsed table with one line per field and one column per row; transposed if there are many rows."""
    if not found:
        return []
    if len(rows) <= MOST_ROWS_ACROSS:
        head = ["", *(row.name for row in rows)]
        body = [[name, *values] for name, values in found.items()]
    else:
        head = ["", *found]
        body = [[row.name, *(values[index] for values in found.values())] for index, row in enumerate(rows)]
    cells = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    lines = ""
    for first, *rest in body:
        values = "".join(f"<td>{html.escape(text) or '-'}</td>" for text in rest)
        lines += f'<tr><th scope="row">{html.escape(first)}</th>{values}</tr>'
    table = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(title)}"><table class="wrap">'
        f"<thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    fields = f"{len(found)} field{'s' * (len(found) > 1)}"
    return [f"<details><summary>{html.escape(title)} ({fields})</summary>{table}</details>"]
