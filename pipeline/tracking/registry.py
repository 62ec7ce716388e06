"""A finished run's model in MLflow: loadable by mlflow.pyfunc, in the registry, the best one called ``champion``."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.files import read_json_list
from pipeline.core.source import PACKAGE
from pipeline.runs import provenance
from pipeline.runs.folder import CLASSES, CONFIG, FACTS, complete
from pipeline.runs.records import Line, Record
from pipeline.tracking.description import read_json

CHAMPION = "champion"
REQUIREMENTS = (  # of what mlflow_classifier.py imports
    "torch", "numpy", "pandas", "safetensors", "simplejpeg", "opencv-python-headless", "pillow", "pyarrow", "tyro",
    "xxhash",
)  # fmt: skip


def log_model(run_dir: Path, record: Record, lines: Sequence[Line], run_id: str, uri: str) -> str | None:
    """Log the newest checkpoint's model to the run and register it. Returns MLflow's model id, None without checkpoint.

    Calling it again after a crash registers no second version of the same run.
    """
    if not complete(run_dir):
        return None
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this process only copies weights: the GPUs are the training's
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import mlflow

    client = mlflow.MlflowClient(uri)
    name = registered_name(run_dir, record)
    found = client.search_model_versions(f"run_id = '{run_id}'")  # a name may hold a quote, which filters can't
    versions = [version for version in found if version.name == name]
    if versions:  # registered by a sync that was killed, perhaps before its tags
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
    config = read_json(run_dir / CONFIG)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_weights(run_dir, folder)
        with mlflow.start_run(run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": str(folder)},
                code_paths=[str(PACKAGE)],
                pip_requirements=[f"{package}=={provenance.version(package)}" for package in REQUIREMENTS],
                signature=signature(),
                input_example=example(config["model"]["image_size"]),
                registered_model_name=name,
            )
    return str(logged.model_id), logged.registered_model_version


def registered_name(run_dir: Path, record: Record) -> str:
    """``vit-b16-finetune-flowers-1f0c9a2b``: the experiment, variant, stage, training data, and a digest of the classes
    and the evaluation data. So all versions under one name know the same classes and have comparable accuracies."""
    config, run = read_json(run_dir / CONFIG), read_json(run_dir / FACTS)
    names = [part["name"].rpartition("/")[0] for part in run.get("datasets", ()) if part["context"] == "train"]
    judged = hashlib.sha256(f"{run.get('classes_digest', '')} {run.get('eval_digest', '')}".encode()).hexdigest()[:8]
    parts = [record.experiment, config["model"]["variant"], config["stage"], *dict.fromkeys(names), judged]
    return "-".join(parts).replace("/", "-").replace(":", "-")


def _is_better(client: Any, name: str, top1: float) -> bool:
    """Whether ``top1`` beats the champion's; true if there is no champion yet."""
    from mlflow.exceptions import MlflowException

    try:
        champion = client.get_model_version_by_alias(name, CHAMPION).tags
    except MlflowException:  # no champion yet
        return True
    return float(champion.get("top1") or 0.0) < top1


def write_weights(run_dir: Path, folder: Path) -> None:
    """What mlflow_classifier.py loads: weights.safetensors and model.json."""
    from pipeline.checkpoint import format as checkpoint
    from pipeline.config.serialize import to_dict
    from pipeline.core.tensor_files import save_tensors
    from pipeline.interop.trained_model import trained_upright

    config, _, weights = checkpoint.read_model(run_dir)
    folder.mkdir(parents=True)
    save_tensors(weights, folder / "weights.safetensors")
    classes = read_json_list(run_dir / CLASSES)
    facts = {
        "model": to_dict(config.model),
        "loss": config.train.loss,
        "resize": config.data.eval_resize,
        "upright": trained_upright(read_json(run_dir / FACTS)),
        "classes": classes,
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


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
