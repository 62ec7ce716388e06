"""What MLflow gets besides metrics: parameters, tags, datasets, a description. Imports no mlflow."""

import dataclasses
import getpass
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import fields
from pipeline.config.recipes import RECIPES
from pipeline.config.serialize import flatten, to_dict
from pipeline.core import files
from pipeline.core.secrets import without_secrets
from pipeline.core.units import duration
from pipeline.runs import records, sweep_record
from pipeline.runs.folder import CHECKPOINTS, CONFIG, CURVES, FACTS, MLFLOW, complete
from pipeline.runs.records import Attempt, Line, Record

LONGEST_PARAM = 6000  # characters: MLflow's limit (MAX_PARAM_VAL_LENGTH)
LONGEST_TAG = 8000  # (MAX_TAG_VAL_LENGTH)


@dataclass(frozen=True)
class Dataset:
    name: str
    digest: str
    source: str  # folder or URL
    context: str  # "train" or "eval"
    profile: dict[str, Any]


@dataclass(frozen=True)
class Description:
    params: dict[str, str]
    tags: dict[str, str]
    datasets: list[Dataset]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def of_run(run_dir: Path, record: Record, uri: str) -> Description:
    """The tags for the server at ``uri`` (without password)."""
    config, run = read_json(run_dir / CONFIG), read_json(run_dir / FACTS)
    code = run.get("code", {})
    params = {**record.params, **{f"run.{key}": run[key] for key in ("steps", "samples", "classes") if key in run}}
    tags = {
        **record.tags,
        "run_dir": str(run_dir.absolute()),
        "mlflow.user": _user(),
        "mlflow.source.type": "JOB",
        "mlflow.source.name": code.get("command", ""),
        "mlflow.source.git.commit": code.get("commit", ""),
        "git.dirty": code.get("dirty", ""),
        "classes_digest": run.get("classes_digest", ""),
        "recipe.changed": recipe_changes(config),
        "checkpoints": str((run_dir / CHECKPOINTS).absolute()),
        "checkpoints.kept": ", ".join(kept_checkpoints(run_dir)),
        **{f"package.{name}": version for name, version in code.get("packages", {}).items()},
        **attempt_tags(record.attempts),
        **fewer_nodes_tag(record.attempts),
        "mlflow.parentRunId": parent_run_id(record.tags, uri),  # the run that MLflow's pages show this one under
    }
    return Description(
        {clean_name(name): without_secrets(str(value))[:LONGEST_PARAM] for name, value in params.items()},
        {clean_name(name): without_secrets(value)[:LONGEST_TAG] for name, value in tags.items() if value},
        _datasets(run),
    )


def clean_name(name: str) -> str:
    """MLflow takes letters, digits, ``_ - . : /`` and spaces in names, 250 at most."""
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]


def read_json(path: Path) -> dict[str, Any]:
    """Empty if there is none yet."""
    return files.read_json(path) if path.is_file() else {}


def recipe_changes(config: dict[str, Any]) -> str:
    """``optim.lr 0.001 -> 0.0003; ...``: the settings in which the run differs from the published recipe."""
    recipes = RECIPES.get(config.get("stage", ""), {})
    if config.get("recipe") not in recipes:
        return ""
    published, ours = flatten(to_dict(recipes[config["recipe"]].config)), flatten(config)
    silent = (fields.FREE - fields.RETUNED) | fields.HIDDEN | fields.UNLIKE_SEEDS
    changed = [name for name in sorted(ours) if name not in silent and ours[name] != published.get(name)]
    return "; ".join(f"{name} {published.get(name)} -> {ours[name]}" for name in changed) or "none"


def attempt_tags(attempts: Sequence[Attempt]) -> dict[str, str]:
    """One tag per attempt, with the steps that were repeated."""
    tags = {"attempts": str(len(attempts))}
    limits = records.last_steps(attempts)
    for attempt in attempts:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(attempt.started))
        words = [f"from step {attempt.start_step}", f"started {begun} UTC", attempt.state]
        if attempt.ended:
            words.append(f"after {duration(attempt.ended - attempt.started)}")
        words += [f"{name} {value}" for name, value in attempt.place.items()]
        if limits[attempt.number] < float("inf"):
            words.append(f"superseded after step {limits[attempt.number]:.0f}")
        tags[f"attempt.{attempt.number}"] = ", ".join(words)
    return tags


def fewer_nodes_tag(attempts: Sequence[Attempt]) -> dict[str, str]:
    """``fewer_nodes``: "4 of 8 nodes" while the run trains on fewer nodes than its job was given, "no" after that."""
    latest = [attempt.place.get("fewer_nodes", "") for attempt in attempts]
    return {"fewer_nodes": latest[-1] or "no"} if any(latest) else {}


def kept_checkpoints(run_dir: Path) -> list[str]:
    """Folder names of the complete checkpoints, oldest first. MLflow gets the names, not the files."""
    return [path.name for path in complete(run_dir)]


def parent_run_id(tags: dict[str, str], uri: str) -> str:
    """The MLflow run of the sweep that this run belongs to; empty if there is none on the same server.

    A fine-tune has no parent here: MLflow would hide it in the collapsed row of its pretrain run.
    """
    sent = read_json(Path(tags["sweep_dir"]) / MLFLOW) if "sweep_dir" in tags else {}
    return str(sent["run_id"]) if sent.get("uri") == uri else ""


def note(run_dir: Path, record: Record, lines: Sequence[Line], run_id: str, state: str) -> str:
    """The run's description in Markdown, with its curves."""
    if sweep_record.is_sweep(run_dir):
        return sweep_record.note(run_dir)
    latest: dict[str, float] = {}
    for line in lines:
        latest.update(line.metrics)
    config = read_json(run_dir / CONFIG)
    figures = [f"{_TITLES[name]} **{_shown(name, latest[name])}**" for name in _TITLES if name in latest]
    if lines:
        figures = [f"step {lines[-1].step:,}", f"{lines[-1].samples:,} samples", *figures]
    rows = [
        ("Recipe", f"`{config.get('stage', '')} {config.get('recipe', '')}`"),
        ("Differs from it in", without_secrets(recipe_changes(config))),
        ("Attempts", str(len(record.attempts))),
        ("Parent", f"`{record.tags['parent_run_dir']}`" if "parent_run_dir" in record.tags else ""),
        ("Run folder", f"`{run_dir.absolute()}`"),
        ("Checkpoints", ", ".join(f"`{name}`" for name in kept_checkpoints(run_dir))),
    ]
    table = "\n".join(f"| {name}&nbsp;&nbsp; | {text.replace('|', '/')} |" for name, text in rows if text)
    # The description is shown at /#/experiments/...: this address is relative to the server's root.
    picture = f"![curves](get-artifact?path={CURVES}&run_uuid={run_id})\n\n" if lines else ""
    # MLflow shows the first lines; a click expands the others
    return f"{' · '.join([f'**{state.lower()}**', *figures])}\n\n{picture}| | |\n|---|---|\n{table}\n"


_TITLES = {
    "eval/top1": "top-1",
    "eval/top5": "top-5",
    "eval/loss": "evaluation loss",
    "train/loss": "training loss",
    "speed/images_per_second": "images/s",
    "progress/device_hours": "device-hours",
    "progress/goodput": "goodput",
}


def _shown(name: str, value: float) -> str:
    return f"{value:.2%}" if name in ("eval/top1", "eval/top5", "progress/goodput") else f"{value:,.4g}"


def _datasets(run: dict[str, Any]) -> list[Dataset]:
    """The datasets in run.json (pipeline.train.setup)."""
    found = []
    for item in run.get("datasets", ()):
        profile = dict(item)
        name, digest, source, context = (profile.pop(key) for key in ("name", "digest", "source", "context"))
        found.append(Dataset(name, digest, source, context, profile))
    return found


def dataset_inputs(datasets: Sequence[Dataset]) -> list[Any]:
    """The datasets as MLflow's entities."""
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    found = []
    for dataset in datasets:
        kind = dataset.source.partition("://")[0].replace("https", "http") if "://" in dataset.source else "local"
        source = {"url" if kind == "http" else "uri": without_secrets(dataset.source)}  # MLflow's names
        entity = Entity(
            dataset.name,
            dataset.digest,
            source_type=kind,
            source=json.dumps(source),
            profile=json.dumps(dataset.profile),
        )
        found.append(DatasetInput(entity, tags=[InputTag("mlflow.data.context", dataset.context)]))
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        return ""
