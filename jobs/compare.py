"""python -m jobs.compare [RUN ...] [--experiment NAME] [--out FOLDER] [--html] [--csv|--json|--latex]"""

import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline.compare.read_runs import read_experiment, read_runs
from pipeline.compare.rows import Row, rows, select
from pipeline.compare.tables import terminal, to_csv, to_json, to_latex
from pipeline.core import cli, errors, results
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make, naming
from pipeline.core.needs import Need
from pipeline.core.secrets import without_secrets
from pipeline.core.terminal import console as make_console

DESCRIPTION = """Compare runs: results with seeds averaged, curves by samples or device-hours, published figures.

Prints a table; writes plots if --out names a folder. --csv and --json write a file, or print with -. Examples:

  python -m jobs.compare runs/ --out comparison --html
  python -m jobs.compare runs/b16 runs/b16-ft-0 runs/b16-ft-1 --against device-hours --out comparison
  python -m jobs.compare --experiment vit --recipe "finetune b16" --parent runs/b16 --latex > table.tex"""


@dataclass(frozen=True)
class CompareConfig:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUN ...]")] = ()
    """Run folders, or folders of run folders."""
    experiment: str = ""
    """Read the runs of this MLflow experiment from MLFLOW_TRACKING_URI (or --mlflow)."""
    mlflow: str = ""
    """MLflow server or sqlite:///FILE. Default: MLFLOW_TRACKING_URI."""
    recipe: str = ""
    """Only runs of this recipe: b16, or "finetune b16"."""
    tag: dict[str, str] = field(default_factory=dict)
    """Only runs with these tags: --tag team vision."""
    parent: str = ""
    """Only fine-tunes of this run: its folder or the folder's name."""
    against: Literal["samples", "step", "epochs", "device-hours"] = "samples"
    """Horizontal axis of the curves."""
    out: Path | None = None
    """Folder to write the plots (and the page of --html) to."""
    format: Literal["png", "svg", "pdf"] = "png"
    """File format of the plots."""
    html: bool = False
    """Also write compare.html, one interactive page that needs no other file, to --out (default: this folder)."""
    csv: str = ""
    """File to write the rows to as CSV; - is the standard output, instead of the table."""
    json: str = ""
    """The same as JSON."""
    latex: bool = False
    """Print a LaTeX table instead."""
    all: bool = False
    """Print every row of the table, not only the first 60."""


NEEDS = {
    "mlflow": Need(lambda options: bool(options.experiment), "on RUN folders", "name an --experiment to read from it"),
    "against": Need(
        lambda options: options.out is not None or options.html, "without curves", "add --out FOLDER or --html"
    ),
    "format": Need(lambda options: options.out is not None, "without plots", "add --out FOLDER"),
    "all": Need(
        lambda options: not options.latex and results.STDOUT not in (options.csv, options.json),
        "when --csv -, --json - or --latex replaces the table (each has every row)",
        "leave out that one",
    ),
}


def main() -> int:
    config = cli.parse(CompareConfig, prog="python -m jobs.compare", description=DESCRIPTION, needs=NEEDS)
    if bool(config.runs) == bool(config.experiment):
        raise UserError("RUN is missing, or given beside --experiment: name either RUN folders or --experiment NAME")
    if (config.csv == results.STDOUT) + (config.json == results.STDOUT) + config.latex > 1:
        raise UserError("--csv -, --json - and --latex all write to the standard output: choose one of them")
    if config.out is not None:
        check_can_make(config.out, "--out")
    runs = read_experiment(config.experiment, _mlflow(config)) if config.experiment else read_runs(config.runs)
    parent = str(Path(config.parent).resolve()) if Path(config.parent).is_dir() and config.parent else config.parent
    chosen = select(runs, recipe=config.recipe, tags=config.tag, parent=parent)
    if not chosen:
        recipes = ", ".join(sorted({run.recipe for run in runs})) or "none"
        raise UserError(
            f"none of the {len(runs)} runs matches --recipe {config.recipe!r} --tag {config.tag} --parent "
            f"{config.parent!r}: the recipes are {recipes}"
        )
    found = rows(chosen)
    if config.out is not None or config.html:  # first: if the table's reader (head) exits, the command ends
        _write(config, found)
    for path, text_of in ((config.csv, to_csv), (config.json, to_json)):
        if path:
            results.write(path, text_of(found))
    if config.latex:
        sys.stdout.write(to_latex(found))
    elif results.STDOUT not in (config.csv, config.json):
        console = make_console(width=None if sys.stdout.isatty() else 160)
        for table in terminal(found, width=console.width, everything=config.all):
            console.print(table)
            console.print()
    return errors.EXIT_DONE


def _mlflow(config: CompareConfig) -> str:
    from pipeline.tracking.client import quiet_environment

    quiet_environment()
    uri = config.mlflow or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise UserError("--experiment needs a server: set MLFLOW_TRACKING_URI or --mlflow sqlite:///runs/mlflow.db")
    return uri


def _write(config: CompareConfig, found: list[Row]) -> None:
    from pipeline.compare.html import page  # matplotlib
    from pipeline.compare.plots import draw_all, save

    out = config.out or Path()
    out.mkdir(parents=True, exist_ok=True)
    if config.out is not None:
        for name, figure in draw_all(found, config.against).items():
            save(figure, out / f"{name}.{config.format}")
        print(f"plots: {out}", file=sys.stderr)
    if config.html:
        command = without_secrets(" ".join([cli.as_called("python -m jobs.compare"), *map(shlex.quote, sys.argv[1:])]))
        made = f"Made {time.strftime('%Y-%m-%d %H:%M')} by {command}"
        with naming(out / "compare.html"):
            title = config.experiment or "Comparison of runs"
            (out / "compare.html").write_text(page(found, title, made, config.against), encoding="utf-8")
        print(f"page: {out / 'compare.html'}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
