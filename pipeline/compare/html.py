"""The comparison as one HTML page without any other file: readable on a phone, on a desk, and in print."""

import html
import io
import re
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.compare.columns import COLUMNS, Column, cell, label, published_texts
from pipeline.compare.plots import BARS_PREFIX as BARS
from pipeline.compare.plots import save_svg
from pipeline.compare.rows import Row, differences, published

STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --line: #d5d5d5; --soft: #5a5a5a }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 75rem;
  padding: 1rem clamp(.75rem, 3vw, 2rem) }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { color: var(--soft); margin: .25rem 0 1rem; max-width: 45rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; max-width: 16rem }
td { white-space: nowrap } .wrap td { white-space: normal }
td span { display: block; white-space: normal; min-width: 9rem }
.wrap tbody th { overflow-wrap: break-word }
th { font-weight: 600; border-bottom-color: var(--ink) } .n { text-align: right; white-space: normal }
tbody th { min-width: 8rem; font-weight: 400; overflow-wrap: anywhere; border-bottom-color: var(--line) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem }
figure { margin: 0; break-inside: avoid } svg { width: 100%; height: auto; display: block }
@media (max-width: 40rem) {
  .results thead { display: none } .results, .results tbody, .results tr { display: block; width: 100% }
  .results th, .results td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0;
    white-space: normal; max-width: none; text-align: right }
  .results tbody th { font-weight: 600; padding-top: .6rem; text-align: left; justify-content: flex-start }
  .results tr { border-bottom: 1px solid var(--line) }
  .results td::before { content: attr(data-title); color: var(--soft) }
}
@media print { body { font-size: 8pt; padding: 0; max-width: none } .wide { overflow: visible } table { font-size: 7pt }
  .figures { grid-template-columns: 1fr 1fr; gap: 1rem } h2 { break-after: avoid } p { break-after: avoid }
  td, tr { break-inside: avoid } @page { size: landscape; margin: 12mm } }
"""


def page(rows: Sequence[Row], figures: Mapping[str, Figure], title: str, made: str) -> str:
    """``made``: when and by which command, for the foot of the page."""
    runs = sum(len(row.runs) for row in rows)
    counts = f"{runs} run{'s' * (runs > 1)} in {len(rows)} row{'s' * (len(rows) > 1)}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{counts}. Runs that differ in the seed only share a row: mean ± deviation. "
        "A fine-tune stands under the run it started from.</p>",
        _results(rows),
    ]
    curves = {name: figure for name, figure in figures.items() if not name.startswith(BARS)}
    bars = {name: figure for name, figure in figures.items() if name.startswith(BARS)}
    if curves:
        parts += ["<h2>Curves</h2><p>Each seed is a line of its own.</p>", _grid(curves)]
    if bars:
        parts += ["<h2>In the end</h2><p>The mean over the seeds, and their deviation.</p>", _grid(bars)]
    if len(rows) > 1:
        parts += _difference("What differs in the configuration", differences(rows), rows)
        parts += _difference("What differs in data and code", differences(rows, "facts"), rows)
    parts.append(f"<p>{html.escape(made)}</p>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(parts)}\n</body></html>\n"
    )


def _grid(figures: Mapping[str, Figure]) -> str:
    inside = "\n".join(f"<figure>{_svg(figure, name)}</figure>" for name, figure in figures.items())
    return f'<div class="figures">{inside}</div>'


def _results(rows: Sequence[Row]) -> str:
    columns = [column for column in COLUMNS if any(column.metric in row.results for row in rows)]
    with_published = any(published(row.first) for row in rows)
    heads = "".join(f'<th class="n">{html.escape(column.title)}</th>' for column in columns)
    last = "<th>published top-1 %</th>" if with_published else ""
    body = []
    for row in rows:
        states = "/".join(sorted({run.state for run in row.runs}))
        cells = [f'<td data-title="recipe">{html.escape(row.first.recipe)}</td><td data-title="state">{states}</td>']
        cells += [
            f'<td class="n" data-title="{html.escape(column.title)}">{_number(row, column)}</td>' for column in columns
        ]
        if with_published:
            cells.append(f'<td data-title="published">{_published(row)}</td>')
        kind = f' style="padding-left: {1.4 * row.depth:g}rem"' if row.depth else ""
        body.append(f"<tr><th{kind}>{html.escape(label(row).strip())}</th>{''.join(cells)}</tr>")
    return (
        '<div class="wide"><table class="results"><thead><tr><th>run</th><th>recipe</th><th>state</th>'
        f"{heads}{last}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _number(row: Row, column: Column) -> str:
    """A narrow column breaks before the ±, not after it."""
    return html.escape(cell(row, column)).replace("± ", "±&nbsp;")


def _published(row: Row) -> str:
    """One line a source."""
    lines = "".join(f"<span>{html.escape(text)}</span>" for text in published_texts(row))
    return f"<div>{lines or '-'}</div>"


def _difference(title: str, found: Mapping[str, Sequence[str]], rows: Sequence[Row]) -> list[str]:
    """Fields down, rows across; the other way round once there are many rows."""
    if not found:
        return []
    if len(rows) <= 6:
        head = ["", *(row.name for row in rows)]
        body = [[name, *values] for name, values in found.items()]
    else:
        head = ["", *found]
        body = [[row.name, *(values[index] for values in found.values())] for index, row in enumerate(rows)]
    cells = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    lines = ""
    for first, *rest in body:
        values = "".join(f"<td>{html.escape(text) or '-'}</td>" for text in rest)
        lines += f"<tr><th>{html.escape(first)}</th>{values}</tr>"
    table = f'<div class="wide"><table class="wrap"><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'
    return [f"<h2>{html.escape(title)}</h2>", table]


def _svg(figure: Figure, name: str) -> str:
    """Inline: without the XML head, with a name for screen readers."""
    out = io.StringIO()
    save_svg(figure, out, name)
    text = out.getvalue()
    # The ids of letters are the same in every figure; on one page each must be there once.
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[0]}{name}-", text)
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(name)}" ', 1)
