"""What MLflow is told of a run beside its metrics: parameters, tags, data sets, a description. Imports no mlflow."""

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

from pipeline import spool
from pipeline.config import flatten, to_dict
from pipeline.metrics import duration
from pipeline.provenance import without_secrets
from pipeline.recipes import FINETUNE, PRETRAIN
from pipeline.spool import Attempt, Line, Record

LONGEST_PARAM = 6000  # characters: MLflow's limit (MAX_PARAM_VAL_LENGTH)
LONGEST_TAG = 8000  # (MAX_TAG_VAL_LENGTH)
PLACES = (
    "run_dir",
    "name",
    "experiment",
    "parent",
    "recipe",
    "data.train",
    "data.eval",
    "data.cache",
    "data.cache_gb",
)  # fmt: skip  (no part of a recipe)


@dataclass(frozen=True)
class Dataset:
    name: str
    digest: str
    folder: str
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
    """As the server at ``uri`` (without password) is to have it."""
    config, run = read_json(run_dir / "config.json"), read_json(run_dir / "run.json")
    code = run.get("code", {})
    params = {**record.params, **{f"run.{key}": run[key] for key in ("steps", "samples", "classes") if key in run}}
    tags = {
        **record.tags,
        "run_dir": str(run_dir.absolute()),
        "mlflow.runName": record.name,
        "mlflow.user": _user(),
        "mlflow.source.type": "JOB",
        "mlflow.source.name": code.get("command", ""),
        "mlflow.source.git.commit": code.get("commit", ""),
        "git.dirty": code.get("dirty", ""),
        "classes_digest": run.get("classes_digest", ""),
        "recipe.changed": recipe_changes(config),
        "checkpoints": str((run_dir / "checkpoints").absolute()),
        "checkpoints.kept": ", ".join(kept_checkpoints(run_dir)),
        **{f"package.{name}": version for name, version in code.get("packages", {}).items()},
        **attempt_tags(record.attempts),
        "mlflow.parentRunId": parent_run_id(record.tags, uri),  # the run that MLflow's pages show this one under
    }
    return Description(
        {clean_name(name): without_secrets(str(value))[:LONGEST_PARAM] for name, value in params.items()},
        {clean_name(name): without_secrets(value)[:LONGEST_TAG] for name, value in tags.items() if value},
        _datasets(config),
    )


def clean_name(name: str) -> str:
    """MLflow takes letters, digits, ``_ - . : /`` and spaces in names, 250 at most."""
    return re.sub(r"[^\w\-.:/ ]", "_", name)[:250]


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none yet."""
    return json.loads(path.read_text()) if path.is_file() else {}


def recipe_changes(config: dict[str, Any]) -> str:
    """``optim.lr 0.001 -> 0.0003; ...``: how the run's configuration differs from the published recipe."""
    recipes = FINETUNE if config.get("stage") == "finetune" else PRETRAIN
    if config.get("recipe") not in recipes:
        return ""
    published, ours = flatten(to_dict(recipes[config["recipe"]]())), flatten(config)
    changed = [name for name in sorted(ours) if name not in PLACES and ours[name] != published.get(name)]
    return "; ".join(f"{name} {published.get(name)} -> {ours[name]}" for name in changed) or "none"


def attempt_tags(attempts: Sequence[Attempt]) -> dict[str, str]:
    """One tag an attempt, and which steps were done again."""
    tags = {"attempts": str(len(attempts))}
    limits = spool.last_steps(attempts)
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


def kept_checkpoints(run_dir: Path) -> list[str]:
    """Folder names of the complete ones, oldest first. MLflow gets no copy: they stay where they are."""
    return sorted(path.parent.name for path in (run_dir / "checkpoints").glob("step-*/meta.json"))


def parent_run_id(tags: dict[str, str], uri: str) -> str:
    """The MLflow run of the run that this one was fine-tuned from, where it is on the same server; else empty."""
    parent = tags.get("parent_run_dir", "")
    sent = read_json(Path(parent) / "mlflow.json") if parent else {}
    return str(sent["run_id"]) if sent.get("uri") == uri else ""


def note(run_dir: Path, record: Record, lines: Sequence[Line], run_id: str, state: str) -> str:
    """The run's description in Markdown, with its curves."""
    latest: dict[str, float] = {}
    for line in lines:
        latest.update(line.metrics)
    config = read_json(run_dir / "config.json")
    rows = [
        ("Recipe", f"`{config.get('stage', '')} {config.get('recipe', '')}`"),
        ("Changed from the recipe", without_secrets(recipe_changes(config))),
        ("Steps", f"{lines[-1].step:,}" if lines else "0"),
        ("Samples", f"{lines[-1].samples:,}" if lines else "0"),
        *((_TITLES[name], _shown(name, latest[name])) for name in _TITLES if name in latest),
        ("Attempts", str(len(record.attempts))),
        ("Parent", f"`{record.tags['parent_run_dir']}`" if "parent_run_dir" in record.tags else "none"),
        ("Run folder", f"`{run_dir.absolute()}`"),
        ("Checkpoints", ", ".join(f"`{name}`" for name in kept_checkpoints(run_dir))),
    ]
    table = "\n".join(f"| {name} | {text.replace('|', '/')} |" for name, text in rows if text)
    # The description is shown at /#/experiments/...: this address is relative to the server's root.
    picture = f"![curves](get-artifact?path=curves.png&run_uuid={run_id})" if lines else ""
    return f"**{record.name}** {state.lower()}\n\n| | |\n|---|---|\n{table}\n\n{picture}\n"


_TITLES = {
    "eval/top1": "Top-1",
    "eval/top5": "Top-5",
    "eval/loss": "Evaluation loss",
    "train/loss": "Training loss",
    "speed/images_per_second": "Images a second",
    "progress/device_hours": "Device-hours",
    "progress/goodput": "Goodput",
}


def _shown(name: str, value: float) -> str:
    return f"{value:.2%}" if name in ("eval/top1", "eval/top5", "progress/goodput") else f"{value:,.4g}"


def _datasets(config: dict[str, Any]) -> list[Dataset]:
    data = config.get("data", {})
    train = data.get("train") or []
    places = [train] if isinstance(train, str) else train
    evaluation = data.get("eval") or "".join(places[:1])
    found = []
    for place, split, context in (
        *((place, data.get("train_split"), "train") for place in places),
        (evaluation, data.get("eval_split"), "eval"),
    ):
        info = read_json(Path(place) / "dataset.json")  # none where the place is a URL
        if info and split in info["samples"]:
            keys = ("classes", "classes_digest", "seed", "rejects", "tool_version")
            profile = {"split": split, "samples": info["samples"][split], **{key: info[key] for key in keys}}
            found.append(Dataset(f"{info['name']}/{split}", info["digest"], place, context, profile))
    return found


def dataset_inputs(datasets: Sequence[Dataset]) -> list[Any]:
    """MLflow's entities."""
    from mlflow.entities import Dataset as Entity  # noqa: PLC0415
    from mlflow.entities import DatasetInput, InputTag  # noqa: PLC0415

    return [
        DatasetInput(
            Entity(
                dataset.name,
                dataset.digest,
                source_type="local",
                source=json.dumps({"uri": dataset.folder}),
                profile=json.dumps(dataset.profile),
            ),
            tags=[InputTag("mlflow.data.context", dataset.context)],
        )
        for dataset in datasets
    ]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
