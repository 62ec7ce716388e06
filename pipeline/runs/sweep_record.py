"""A sweep: runs that differ in a setting, grouped in MLflow under a parent run that names the best of them.

The sweep's folder has a run's tracking files (``tracking.json``, ``metrics.jsonl``), so that it is sent to MLflow like
a run, with one line of metrics per run instead of per step. ``sweep.csv`` has the same data for users.
"""

import contextlib
import csv
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.fields import OWN
from pipeline.config.serialize import flatten
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.terminal import csv_cell
from pipeline.runs import provenance, records
from pipeline.runs.folder import CONFIG, METRICS, RECORD
from pipeline.runs.records import Attempt, Line, Record

TABLE = "sweep.csv"
STAGE = "sweep"  # value of MLflow's tag "stage"


def start(folder: Path, *, experiment: str, tags: Mapping[str, str]) -> None:
    """Create the sweep's record if there is none; all runs of a job array may call it. ``tags``: those of its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    if records.read_record(folder) is not None:
        return
    record = Record(
        key=uuid.uuid4().hex,
        experiment=experiment,
        name=folder.name,
        params={},
        tags={**{name: tag for name, tag in tags.items() if name != "sweep_dir"}, "stage": STAGE},
        artifacts=[[TABLE, ""]],
        attempts=[_attempt(1)],
    )
    aside = folder / f".{record.key}.json"
    write_json(aside, dataclasses.asdict(record))
    with contextlib.suppress(FileExistsError):  # another run created it
        os.link(aside, folder / RECORD)
    aside.unlink()


def is_sweep(folder: Path) -> bool:
    record = records.read_record(folder)
    return record is not None and record.tags.get("stage") == STAGE


def end(folder: Path, scores: Mapping[Path, float | None], best: Path, by: str) -> None:
    """Record the runs' scores by the metric ``by``; None for a run that failed.

    May be called again: MLflow then shows the later values. Raises UserError if ``folder`` is a run's.
    """
    record = records.read_record(folder)
    first = records.read_record(next(iter(scores)))
    if record is None and first is not None:  # the runs were started without --sweep
        start(folder, experiment=first.experiment, tags=first.tags)
        record = records.read_record(folder)
    if record is None or record.tags.get("stage") != STAGE:
        raise UserError(f"--sweep {str(folder)!r} is a run's folder: name another folder for the sweep")
    attempts = record.attempts
    if attempts[-1].state != "RUNNING":
        attempts = [*attempts, _attempt(len(attempts) + 1)]
    now = time.time()
    configs = {run: flatten(read_json(run / CONFIG)) for run in scores}
    names = differing(list(configs.values()))
    lines = records.Appender(folder / METRICS)
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["run", *names, by, ""])
        for number, (run, score) in enumerate(scores.items(), 1):
            values = {name: configs[run].get(name, "") for name in names}
            table.writerow(
                [
                    csv_cell(run.name),
                    *map(csv_cell, values.values()),
                    "failed" if score is None else score,
                    "best" if run == best else "",
                ]
            )
            metrics = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
            metrics |= {} if score is None else {by: score}
            lines.append(records.to_json(Line(number, 0, now, attempts[-1].number, metrics)))
    lines.close()
    tags = {"best": best.name, "best_run_dir": str(best.absolute()), f"best.{by}": str(scores[best])}
    tags |= {f"best.{name}": str(configs[best].get(name, "")) for name in names}
    attempts = [*attempts[:-1], dataclasses.replace(attempts[-1], state="FINISHED", ended=now)]
    records.write_record(folder, dataclasses.replace(record, tags=record.tags | tags, attempts=attempts))


def note(folder: Path) -> str:
    """The sweep's description in Markdown: a table of its runs."""
    if not (folder / TABLE).is_file():
        return "A sweep in progress: its runs are listed under it."
    with (folder / TABLE).open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _attempt(number: int) -> Attempt:
    return Attempt(number, 0, time.time(), os.getpid(), provenance.describe_place(1))


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that differ between the runs."""
    names = sorted({name for config in configs for name in config} - OWN)
    return [name for name in names if len({json.dumps(config.get(name)) for config in configs}) > 1]
