"""Register a finished run's model in MLflow: loadable by mlflow.pyfunc; the best one has the alias ``champion``."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.source import PACKAGE
from pipeline.runs import provenance
from pipeline.runs.folder import CONFIG, FACTS, complete
from pipeline.runs.records import Line, Record
from pipeline.tracking.description import read_json

CHAMPION = "champion"
REQUIREMENTS = (  # what pyfunc_model.py imports, directly and through pipeline
    "torch", "numpy", "pandas", "safetensors", "simplejpeg", "opencv-python-headless", "pillow", "xxhash",
)  # fmt: skip


def log_model(run_dir: Path, record: Record, lines: Sequence[Line], run_id: str, uri: str) -> str | None:
    """Log the newest checkpoint's model to the run and register it. Returns MLflow's model id; None if no checkpoint.

    Calling it again after a crash does not register a second version for the run.
    """
    if not complete(run_dir):
        return None
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this process only copies weights: the GPUs belong to training
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import mlflow

    client = mlflow.MlflowClient(uri)
    name = registered_name(run_dir, record)
    found = client.search_model_versions(
        f"run_id = '{run_id}'"
    )  # not by name: it may contain a quote, which filters don't support
    versions = [version for version in found if version.name == name]
    if versions:  # registered by a sync that was killed, perhaps before setting the tags
        model_id, version = str(versions[0].model_id), versions[0].version
    else:
        mlflow.set_tracking_uri(uri)
        model_id, version = _register(mlflow, run_dir, run_id, name)
    config = read_json(run_dir / CONFIG)
    top1 = next((line.metrics["eval/top1"] for line in reversed(lines) if "eval/top1" in line.metrics), None)
    run = read_json(run_dir / FACTS)
    tags = {
        "recipe": f"{config['stage']} {config['recipe']}",
        "run_dir": str(run_dir.absolute()),
        "classes_digest": run.get("classes_digest", ""),
        "eval_digest": run.get("eval_digest", ""),
        "parent_run_dir": run.get("parent", {}).get("run_dir", ""),
        "parent_mlflow_run_id": record.tags.get("parent_mlflow_run_id", ""),
        "top1": "" if top1 is None else f"{top1:.6f}",
    }
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, value)
    if top1 is not None and _is_better(client, name, top1):
        client.set_registered_model_alias(name, CHAMPION, version)
    return model_id


def _register(mlflow: Any, run_dir: Path, run_id: str, name: str) -> tuple[str, Any]:
    """Log the model to the run and register it; its id and version."""
    with tempfile.TemporaryDirectory() as scratch:
        parts = model_parts(run_dir, Path(scratch) / "model")
        with mlflow.start_run(run_id):
            logged = mlflow.pyfunc.log_model(name="model", registered_model_name=name, **parts)
    return str(logged.model_id), logged.registered_model_version


def model_parts(run_dir: Path, folder: Path) -> dict[str, Any]:
    """Write the newest checkpoint's model to ``folder``, which must not exist; return the arguments for MLflow's
    pyfunc.log_model and save_model. The package's code is included, so that the model loads on machines without this
    project. Raises UserError."""
    from pipeline.interop import export, trained_model

    trained = trained_model.load(run_dir)
    folder.mkdir(parents=True)
    export.write(folder, "safetensors", trained)
    return {
        "python_model": str(Path(__file__).with_name("pyfunc_model.py")),
        "artifacts": {"model": str(folder)},
        "code_paths": [str(PACKAGE)],
        "pip_requirements": [f"{package}=={provenance.version(package)}" for package in REQUIREMENTS],
        "signature": signature(),
        "input_example": example(trained.description.model.image_size),
    }


def registered_name(run_dir: Path, record: Record) -> str:
    """``vit-b16-finetune-flowers-1f0c9a2b``: the experiment, variant, stage, training data, and a digest of the classes
    and the evaluation data. So all versions of one model have the same classes and comparable accuracies."""
    config, run = read_json(run_dir / CONFIG), read_json(run_dir / FACTS)
    names = [part["name"].rpartition("/")[0] for part in run.get("datasets", ()) if part["context"] == "train"]
    judged = hashlib.sha256(f"{run.get('classes_digest', '')} {run.get('eval_digest', '')}".encode()).hexdigest()[:8]
    parts = [record.experiment, config["model"]["variant"], config["stage"], *dict.fromkeys(names), judged]
    return "-".join(parts).replace("/", "-").replace(":", "-")


def _is_better(client: Any, name: str, top1: float) -> bool:
    """Whether ``top1`` is higher than the champion's; True if there is no champion yet."""
    from mlflow.exceptions import MlflowException

    try:
        champion = client.get_model_version_by_alias(name, CHAMPION).tags
    except MlflowException:  # no champion yet
        return True
    return float(champion.get("top1") or 0.0) < top1


def signature() -> Any:
    """Image bytes -> lists of the likeliest classes."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, Schema

    outputs = [("class", "long"), ("wnid", "string"), ("name", "string"), ("probability", "double")]
    return ModelSignature(
        inputs=Schema([ColSpec("binary", "image")]),
        outputs=Schema([ColSpec(Array(kind), name) for name, kind in outputs]),
    )


def example(size: int) -> Any:
    """A JPEG of a smooth colour gradient, ``size`` pixels square."""
    import numpy as np
    import pandas as pd
    import simplejpeg

    ramp = np.linspace(0, 255, size).astype(np.uint8)
    image_HWC = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(128)), axis=-1)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image_HWC))
    return pd.DataFrame({"image": [data]})
