"""python -m jobs.status [FOLDER ...]: the state, step, ETA, checkpoint and goodput of every run, and why it waits."""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape
from rich.table import Table

from pipeline.core import cli, errors, results, terminal
from pipeline.core.errors import UserError
from pipeline.core.units import duration
from pipeline.runs.overview import StatusRow, collect
from pipeline.runs.slurm_queue import read_queue

DESCRIPTION = """Show the state of runs and of a campaign's other jobs in a table, from their folders and Slurm's queue.

FOLDER is a run folder, a folder of run folders, or a campaign's folder (slurm/submit_all.sh). Examples:

  python -m jobs.status
  python -m jobs.status work/runs work/campaigns/l16
  watch -n 30 python -m jobs.status --json - work/runs/pretrain-l16"""


@dataclass(frozen=True)
class StatusConfig:
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER ...]")] = ()
    """Run folders, folders of runs, or campaign folders. Default: work/runs and work/campaigns, if they exist."""
    json: str = ""
    """File to write the rows to as JSON, one per line; - is the standard output, instead of the table."""


def main() -> int:
    config = cli.parse(StatusConfig, prog="python -m jobs.status", description=DESCRIPTION)
    folders = config.folders or tuple(path for path in (Path("work/runs"), Path("work/campaigns")) if path.is_dir())
    rows = collect(folders, read_queue(), time.time())
    if not rows:
        raise UserError(
            f"FOLDER {', '.join(map(str, folders)) or 'work/runs'} holds neither a run nor a campaign, and no training "
            "job is in Slurm's queue: name a folder that --run-dir or slurm/submit_all.sh wrote to"
        )
    if config.json:
        results.write(config.json, "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    if config.json != results.STDOUT:
        console = terminal.console(width=None if os.isatty(1) else 150)
        console.print(table(rows, console.width))
    return errors.EXIT_DONE


COLUMNS = ("run", "state", "step", "ETA", "last checkpoint", "goodput", "starts", "job", "nodes | reason")
DROPPED = (
    "starts",
    "goodput",
    "last checkpoint",
    "job",
    "ETA",
    "nodes | reason",
)  # when there is no room, in this order
COLOURS = {"finished": "green", "done": "green", "running": "cyan", "failed": "red", "dead": "red", "damaged": "red"}
FRAME = 3  # characters around a column


def table(rows: Sequence[StatusRow], width: int) -> Table:
    """The rows in a window ``width`` characters wide. Columns without room are named below."""
    cells = [_cells(row) for row in rows]
    sizes = {name: max(len(name), *(len(row[name]) for row in cells)) + FRAME for name in COLUMNS}
    shown = [name for name in COLUMNS if name in ("run", "state") or any(row[name] for row in cells)]
    dropped = []
    for name in DROPPED:
        if sum(sizes[column] for column in shown) + 1 <= width:
            break
        if name in shown:
            shown.remove(name)
            dropped.append(name)
    result = Table(title="Runs")
    for name in shown:
        right = name in ("step", "ETA", "goodput", "starts")
        result.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name != "run")
    for row in cells:
        colour = COLOURS.get(row["state"], "yellow")
        result.add_row(*(f"[{colour}]{row[name]}[/]" if name == "state" else escape(row[name]) for name in shown))
    if dropped:
        result.caption = f"no room for {', '.join(dropped)}: a wider window, or --json"
    return result


def _cells(row: StatusRow) -> dict[str, str]:
    checkpoint = ""
    if row.checkpoint_step is not None and row.checkpoint_age is not None:
        checkpoint = f"step {row.checkpoint_step}, {duration(row.checkpoint_age)} ago"
    texts = (
        row.name,
        row.state,
        f"{row.step:,}/{row.steps:,}" if row.steps else "",
        duration(row.eta) if row.eta is not None else "",
        checkpoint,
        f"{row.goodput:.1%}" if row.goodput is not None else "",
        str(row.starts or ""),
        row.job,
        row.note,
    )
    return dict(zip(COLUMNS, texts, strict=True))


if __name__ == "__main__":
    cli.run(main)
