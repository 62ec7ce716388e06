"""A sweep: runs that differ in a setting, shown in MLflow under a run of its own, which says which of them is best.

The sweep's folder holds what a run's does for tracking (``tracking.json``, ``metrics.jsonl``), so that it reaches
MLflow as runs do; a line of metrics a run, in place of a line a step. ``sweep.csv`` is the same for people.
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
STAGE = "sweep"  # what MLflow's tag "stage" says of it


def start(folder: Path, *, experiment: str, tags: Mapping[str, str]) -> None:
    """Make the sweep's record where there is none; the runs of a job array may all try. ``tags``: those of its runs."""
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
    with contextlib.suppress(FileExistsError):  # another was first
        os.link(aside, folder / RECORD)
    aside.unlink()


def is_sweep(folder: Path) -> bool:
    record = records.read_record(folder)
    return record is not None and record.tags.get("stage") == STAGE


def end(folder: Path, scores: Mapping[Path, float | None], best: Path, by: str) -> None:
    """Write down how the runs did: the score of each by the metric ``by``, None where it failed.

    May be called again: MLflow then shows the later values. Raises UserError where ``folder`` is a run's.
    """
    record = records.read_record(folder)
    first = records.read_record(next(iter(scores)))
    if record is None and first is not None:  # none of the runs knew that they were a sweep
        start(folder, experiment=first.experiment, tags=first.tags)
        record = records.read_record(folder)
    if record is None or record.tags.get("stage") != STAGE:
        raise UserError(f"--sweep {str(folder)!r} is a run's folder: name another one, which the sweep is to have")
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
    """Its description in Markdown: the table."""
    if not (folder / TABLE).is_file():
        return "A sweep that is going on: its runs stand under it."
    with (folder / TABLE).open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _attempt(number: int) -> Attempt:
    return Attempt(number, 0, time.time(), os.getpid(), provenance.describe_place(1))


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings in which they are not all alike."""
    names = sorted({name for config in configs for name in config} - OWN)
    return [name for name in names if len({json.dumps(config.get(name)) for config in configs}) > 1]
