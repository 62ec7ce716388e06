"""How MLflow's pages show an experiment: address, columns and order. Imports no mlflow."""

import json
import shlex
from pathlib import Path
from typing import Any

from pipeline.core.secrets import without_secrets
from pipeline.runs.folder import MLFLOW
from pipeline.tracking.description import read_json

NAME = "vit"  # the shared view's key: the address refers to the view in the experiment's tags by it
COLUMNS = (
    "metrics.`eval/top1`", "metrics.`eval/loss`", "metrics.`train/loss`", "metrics.`progress/epochs`",
    "metrics.`progress/device_hours`", "metrics.`speed/images_per_second`", "params.`recipe`", "attributes.`Dataset`",
)  # fmt: skip
VIEW_TAG = f"mlflow.sharedViewState.{NAME}"
VIEW: dict[str, Any] = {"selectedColumns": list(COLUMNS), "orderByKey": "metrics.`eval/top1`", "orderByAsc": False}
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "eval/top1",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "true",
    VIEW_TAG: json.dumps(VIEW),
}
LOCAL = "http://127.0.0.1:5000"  # default address of ``mlflow ui``


def address(uri: str, experiment_id: str) -> str:
    """The page that lists an experiment's runs, best first. Without these parameters MLflow opens in its GenAI mode
    and shows no metric."""
    base = without_secrets(uri).rstrip("/") if uri.startswith("http") else LOCAL
    return f"{base}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={NAME}"


def how_to_look(run_dir: Path) -> str:
    """The page's address, with the command to serve it if the run is in a file. Empty for a run that was not sent."""
    sent = read_json(run_dir / MLFLOW)
    if not sent:
        return ""
    page = address(sent["uri"], sent["experiment_id"])
    if sent["uri"].startswith("http"):
        return page
    return f"mlflow ui --backend-store-uri {shlex.quote(sent['uri'])}, then open {page}"
