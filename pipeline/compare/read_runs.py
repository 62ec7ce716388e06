"""Reading runs to compare: from their folders, or from MLflow if only the server has them."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.serialize import flatten
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.core.secrets import without_secrets
from pipeline.runs import records, suite_results
from pipeline.runs.folder import CONFIG, EVALUATION_LINES, EVALUATIONS, FACTS, METRICS, RECORD, is_run
from pipeline.runs.records import Line
from pipeline.runs.sweep_record import STAGE
from pipeline.tracking.client import database_of, open_client, reason
from pipeline.tracking.description import read_json


@dataclass(frozen=True)
class Run:
    """One run as read. ``config`` and ``facts`` are flat, with text values."""

    name: str
    path: str  # run folder, absolute, symbolic links resolved: the same for every path to it
    state: str  # running, finished, failed, killed
    config: dict[str, str]
    facts: dict[str, str]  # about data, code and origin: digests, commit, package versions, start weights
    tags: dict[str, str]
    lines: list[Line]  # without those that a resumed run repeated
    attempts: int = 1
    parent: str = ""  # run folder of the pretrain run, in the form of ``path``; empty if there is none
    parent_step: str = ""  # step of the checkpoint that it started from
    datasets: dict[str, str] = field(default_factory=dict)  # names of the datasets by digest; the training data first
    evaluations: dict[str, float] = field(
        default_factory=dict
    )  # metrics of jobs.evaluate and jobs.suite, if not in lines

    @property
    def recipe(self) -> str:
        return f"{self.config.get('stage', '')} {self.config.get('recipe', '')}".strip()

    @property
    def dataset(self) -> str:
        """The name of the training data, or the beginning of its digest if only that is known."""
        return next(iter(self.datasets.values()), self.facts.get("dataset_digest", "")[:8])

    def named(self, value: str) -> str:
        """``value`` with the datasets' names, if it is a dataset digest or several joined by ``+``."""
        parts = value.split("+")
        if not all(part in self.datasets for part in parts):
            return value
        return " + ".join(f"{self.datasets[part]} ({part[:8]})" for part in parts)

    @property
    def final(self) -> dict[str, float]:
        """The latest value of each metric, those of jobs.evaluate and jobs.suite included."""
        latest: dict[str, float] = {}
        for line in self.lines:
            latest.update(line.metrics)
        return latest | self.evaluations


def find_run_folders(paths: Iterable[Path]) -> list[Path]:
    """Run folders among ``paths`` and directly inside them, each once. Raises UserError if a path has none."""
    found: dict[Path, Path] = {}  # resolved path -> path as first given: a link to a run is the same run
    for path in paths:
        check_local(path, "RUN")
        if not path.exists():
            raise UserError(f"RUN {str(path)!r} does not exist: name a run folder, or a folder of run folders")
        below = sorted(path.iterdir()) if path.is_dir() else []
        inside = [path] if _has_results(path) else [folder for folder in below if _has_results(folder)]
        if not inside and path.is_dir():
            raise UserError(
                f"RUN {str(path)!r} contains no run (no {METRICS} in it or one level below): name a run folder "
                "written by vit pretrain or vit finetune"
            )
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    if not found:
        raise UserError("RUN: none of the paths is a run folder: name one written by vit pretrain or vit finetune")
    return list(found.values())


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs among ``paths`` and directly inside them; a damaged one is skipped with a warning.

    Raises UserError if none can be read, and as :func:`find_run_folders`.
    """
    folders, found = find_run_folders(paths), list[Run]()
    for folder in folders:
        try:
            found.append(read_run(folder))
        except UserError as error:
            if folder == folders[-1] and not found:
                raise
            print(f"warning: {folder.name} is skipped: {error}", file=sys.stderr)
    return found


def _has_results(folder: Path) -> bool:
    """Whether there is anything to compare; False for a run that Slurm has queued but that has not trained yet."""
    return is_run(folder) and ((folder / METRICS).is_file() or (folder / RECORD).is_file())


def read_run(run_dir: Path) -> Run:
    record = records.read_record(run_dir)
    attempts = record.attempts if record else []
    lines, _ = records.read_lines(run_dir / METRICS)
    facts = read_json(run_dir / FACTS)
    state = attempts[-1].state if attempts else "FINISHED"
    if attempts and state == "RUNNING" and not records.alive(run_dir, attempts[-1]):
        state = "FAILED"
    parent = facts.get("parent") or {}
    config = {key: str(value) for key, value in flatten(read_json(run_dir / CONFIG)).items()}
    return Run(
        name=record.name if record else run_dir.resolve().name,
        path=str(run_dir.resolve()),
        state=state.lower(),
        config=config,
        facts=_facts(facts) | beginnings(config, parent, eval_digest(facts)),
        tags=record.tags if record else {},
        lines=records.effective(lines, attempts),
        attempts=len(attempts) or 1,
        parent=str(Path(parent["run_dir"]).resolve()) if parent.get("run_dir") else "",
        parent_step=str(parent.get("step", "")),
        datasets=_dataset_names(facts),
        evaluations=_evaluations(run_dir),
    )


def _evaluations(run_dir: Path) -> dict[str, float]:
    """The latest metrics that --log has kept, as MLflow has them, and results of jobs.suite without --log."""
    lines, _ = records.read_lines(run_dir / EVALUATION_LINES)
    found = {name: value for line in lines for name, value in line.metrics.items()}
    for result in suite_results.read_all(run_dir / EVALUATIONS):
        found |= suite_results.metrics(result)
    return found


def _dataset_names(run: Mapping[str, Any]) -> dict[str, str]:
    """Dataset names in ``run`` (run.json) by digest, including the joint digest of several parts."""
    found = {}
    for context in ("train", "eval"):
        parts = [part for part in run.get("datasets", ()) if part.get("context") == context and part.get("digest")]
        names = [str(part.get("name") or part["digest"][:8]) for part in parts]
        together = str(run.get("dataset_digest" if context == "train" else "eval_digest") or "")
        if names and together:
            found[together] = " + ".join(names)
        found |= {str(part["digest"]): name for part, name in zip(parts, names, strict=True)}
    return found


def beginnings(config: Mapping[str, str], parent: Mapping[str, Any], evaluated: str) -> dict[str, str]:
    """What runs must share to be seeds of one row, in addition to configuration and training data.

    ``origin``: the weights that a fine-tune started from. ``eval_data``: the data that its results were measured on,
    by the digest ``evaluated`` or, if that was not recorded, by the name in the configuration.
    """
    origin = ""
    if parent.get("run_dir"):
        origin = f"{Path(parent['run_dir']).resolve()} step {parent.get('step', '?')}"
    elif parent.get("weights"):
        origin = str(parent.get("digest") or parent["weights"])
    elif config.get("stage") == "finetune":
        origin = "scratch"
    found = {"origin": origin, "eval_data": evaluated or config.get("data.eval", "")}
    return {name: value for name, value in found.items() if value}


def eval_digest(run: Mapping[str, Any]) -> str:
    """Digest of the evaluation data in run.json; empty if there is none."""
    listed = (part.get("digest", "") for part in run.get("datasets", ()) if part.get("context") == "eval")
    return str(run.get("eval_digest") or "+".join(listed))


def evaluated_on(run_dir: Path) -> str:
    """The data that a run's results were measured on, as text; equal for runs that can be ranked."""
    config = {key: str(value) for key, value in flatten(read_json(run_dir / CONFIG)).items()}
    data = beginnings(config, {}, eval_digest(read_json(run_dir / FACTS))).get("eval_data", "")
    return " ".join(part for part in (data, config.get("data.eval_split", "")) if part)


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    code = run.get("code", {})
    named = {"code.commit": code.get("commit"), "code.dirty": code.get("dirty"), "python": code.get("python")}
    packages = {f"package.{name}": version for name, version in code.get("packages", {}).items()}
    data = {name: run.get(name) for name in ("dataset_digest", "classes_digest", "classes", "samples", "steps")}
    return {name: str(value) for name, value in {**data, **named, **packages}.items() if value}


def read_experiment(name: str, uri: str) -> list[Run]:
    """The runs of an MLflow experiment, from their folders if those exist here. Raises UserError if it has none."""
    from mlflow.exceptions import MlflowException  # seconds
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_secrets(uri)
    database = database_of(uri)
    if database is not None and not database.is_file():  # MLflow would create an empty one
        raise UserError(f"--mlflow {shown}: the file {str(database)!r} does not exist")
    try:
        client = open_client(uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            names = ", ".join(item.name for item in client.search_experiments()) or "none"
            raise UserError(f"--experiment {name!r} is not on the MLflow server {shown}, which has {names}")
        runs = _search(client, experiment.experiment_id)
        return [_from_mlflow(client, run) for run in runs if run.data.tags.get("stage") != STAGE]
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise UserError(f"--experiment {name!r} can't be read from {shown}: {reason(error)}") from None


def _search(client: Any, experiment_id: str) -> list[Any]:
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _from_mlflow(client: Any, run: Any) -> Run:
    tags, params = run.data.tags, run.data.params
    folder = Path(tags.get("run_dir", ""))
    record = records.read_record(folder) if tags.get("run_dir") else None
    if record is not None and record.key == tags.get("run_key"):
        return read_run(folder)
    values: dict[tuple[int, str], tuple[int, float]] = {}  # the latest value wins
    for metric in (name for name in run.data.metrics if not name.startswith("system/")):
        for point in client.get_metric_history(run.info.run_id, metric):
            if point.timestamp >= values.get((point.step, metric), (-1, 0.0))[0]:
                values[point.step, metric] = (point.timestamp, point.value)
    by_step: dict[int, dict[str, tuple[int, float]]] = {}
    for (step, metric), value in values.items():
        by_step.setdefault(step, {})[metric] = value
    lines = []
    for step, found in sorted(by_step.items()):
        metrics = {metric: value for metric, (_, value) in found.items()}
        stamp = max(stamp for stamp, _ in found.values()) / 1000
        lines.append(Line(step, int(metrics.get("progress/samples", 0)), stamp, 1, metrics))
    facts = {name: tags[name] for name in tags if name.startswith("package.") or name.endswith("_digest")}
    facts |= {key.removeprefix("run."): value for key, value in params.items() if key.startswith("run.")}
    config = {key: value for key, value in params.items() if not key.startswith("run.")}
    parent = {key.removeprefix("parent_"): value for key, value in tags.items() if key.startswith("parent_")}
    inputs = [
        {"name": item.dataset.name, "digest": item.dataset.digest, "context": tag.value}
        for item in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in item.tags
        if tag.key == "mlflow.data.context"
    ]
    facts |= beginnings(config, parent, eval_digest({"datasets": inputs}))
    named = {"code.commit": tags.get("mlflow.source.git.commit", ""), "code.dirty": tags.get("git.dirty", "")}
    return Run(
        name=run.info.run_name,
        path=str(folder.resolve()) if tags.get("run_dir") else run.info.run_id,
        state=run.info.status.lower(),
        config=config,
        facts=facts | {key: value for key, value in named.items() if value},
        tags=tags,
        lines=lines,
        attempts=int(tags.get("attempts", 1)),
        parent=str(Path(parent["run_dir"]).resolve()) if parent.get("run_dir") else "",
        parent_step=parent.get("step", ""),
        datasets=_dataset_names({"datasets": inputs, "dataset_digest": facts.get("dataset_digest", "")}),
    )
