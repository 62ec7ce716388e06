"""Evaluations stored with a run: in RUN/evaluations/, and from there in MLflow.

``evaluations.jsonl`` has one line per evaluation, in the format of metrics.jsonl; ``evaluations/NAME/`` has the files.
"""

import errno
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.runs import records
from pipeline.runs.folder import EVALUATION_LINES, EVALUATIONS, RECORD
from pipeline.runs.records import Line


def run_of(checkpoint: Path) -> Path:
    """The run folder of ``RUN/checkpoints/step-...``. Raises UserError if it isn't one."""
    run_dir = checkpoint.absolute().parent.parent
    if not (run_dir / RECORD).is_file():
        raise UserError(f"--log stores the result in the run folder, but MODEL {str(checkpoint)!r} is not in one")
    return run_dir


def name_of(dataset: str, split: str, *, average: bool) -> str:
    """The evaluation's name in MLflow."""
    return mlflow_name(f"{dataset}-{split}{'-average' if average else ''}")


def mlflow_name(text: str) -> str:
    """``text`` limited to characters that are valid in MLflow's metric names and in folder names."""
    return re.sub(r"[^\w.-]", "_", text)


def keep(run_dir: Path, name: str, step: int, facts: Mapping[str, Any], scores: Mapping[str, float]) -> None:
    """Record the scores of the checkpoint of ``step``; a later evaluation with this name replaces the files."""
    folder = run_dir / EVALUATIONS / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", {**facts, **scores})
    append(run_dir, step, {f"evaluation/{name}/{score}": value for score, value in scores.items()})


def append(run_dir: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Write a line of metrics of the checkpoint of ``step``, for MLflow."""
    record = records.read_record(run_dir)
    assert record is not None, run_dir
    lines = records.Appender(run_dir / EVALUATION_LINES)
    lines.append(records.to_json(Line(step, 0, time.time(), record.attempts[-1].number, dict(metrics))))
    lines.close()
    if lines.waiting:
        raise OSError(errno.ENOSPC, lines.fault, str(lines.path))


def is_logged(run_dir: Path, step: int, metrics: Mapping[str, float]) -> bool:
    """Whether the last line of these metrics has their values and is of ``step``, so that it needn't be written again.

    Raises UserError if the file is damaged.
    """
    lines, _ = records.read_lines(run_dir / EVALUATION_LINES)
    latest = next((line for line in reversed(lines) if line.metrics.keys() >= metrics.keys()), None)
    return latest is not None and latest.step == step and latest.metrics == dict(metrics)
