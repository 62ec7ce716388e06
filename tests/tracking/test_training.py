"""Two real ranks that are stopped, requeued and finish: metrics, lineage, datasets, and the model in the registry."""

import io
import json
import signal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import simplejpeg
import torch
from mlflow import MlflowClient
from PIL import Image

from pipeline.checkpoint import format as checkpoint
from pipeline.core.files import write_json
from pipeline.dataset.format import read_index
from pipeline.loader.transforms import eval_image
from pipeline.model.preprocess import normalise
from pipeline.model.vit import VisionTransformer
from pipeline.runs import records
from pipeline.runs.folder import METRICS
from pipeline.runs.records import Record
from pipeline.tracking.registry import registered_name
from pipeline.tracking.sent import read_sent
from tests.helpers.jobs import TRACKED
from tests.helpers.mlflow_runs import only_run, shown
from tests.helpers.mlflow_server import Server
from tests.helpers.ranks import Ranks, run_ranks


@pytest.mark.filterwarnings("ignore")  # of mlflow's model loader and of what it imports
def test_a_requeued_training_is_one_run_with_its_model_in_the_registry(
    server: Server, seven_digits: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = (
        "-m",
        "tests.helpers.on_nodes",
        "jobs.pretrain",
        "tiny",
        "--run-dir",
        run_dir,
        "--data.train",
        seven_digits,
        *TRACKED,
    )
    job += ("--experiment", "the lab's digits", "--data.eval-resize", "central")
    variables = {"VIT_MLFLOW": "on", "MLFLOW_TRACKING_URI": server.uri}
    with Ranks(2, job, tmp_path / "first", **variables) as ranks:
        ranks.wait_for("step 5/30", 120)
        ranks.signal(1, signal.SIGUSR1)
        assert [rank.code for rank in ranks.wait(180)] == [75, 75]
    run_ranks(2, job, tmp_path / "second", 300, **variables)

    client = MlflowClient(server.uri)
    run = only_run(client, run_dir)
    record, sent = records.read_record(run_dir), read_sent(run_dir)
    assert record is not None
    assert sent is not None
    assert run.info.status == "FINISHED"
    assert [attempt.state for attempt in record.attempts] == ["KILLED", "FINISHED"]
    assert run.data.tags["attempts"] == "2"
    lines = records.effective(records.read_lines(run_dir / METRICS)[0], record.attempts)
    for name in ("train/loss", "train/lr", "eval/top1", "progress/device_hours", "progress/goodput"):
        latest = {
            point.step: shown(point.value)
            for point in sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.timestamp)
        }
        assert latest == {line.step: shown(line.metrics[name]) for line in lines if name in line.metrics}
    load = {
        name.split("/", 2)[1]: run.data.metrics[name]
        for name in run.data.metrics
        if name.endswith("memory_usage_percentage")
    }
    assert set(load) == {"node0", "node1"}, "each node's system metrics, not rank 0's alone"
    assert all(0 < value < 100 for value in load.values())
    assert run.data.metrics["progress/restarts"] == 1
    assert run.data.params["train.global_batch"] == "32"
    assert "data.flip True -> False" in run.data.tags["recipe.changed"]
    info = json.loads((seven_digits / "dataset.json").read_text())
    assert run.data.tags["checkpoints"] == str(run_dir / "checkpoints")
    assert run.data.tags["checkpoints.kept"].split(", ")[-1] == checkpoint.folder_name(30)
    attempts = [run.data.tags[f"attempt.{number}"] for number in (1, 2)]
    assert all("2 x CPU process" in text and "commit " in text for text in attempts)
    code = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "code")}
    assert code >= {"packages-1.txt", "packages-2.txt"}
    assert {(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs} == {
        (f"{info['name']}/{split}", info["digest"]) for split in ("train", "val")
    }

    version = champion(client, run.info.run_id)
    assert version.run_id == run.info.run_id
    top1 = lines[-1].metrics["eval/top1"]
    assert float(version.tags["top1"]) == pytest.approx(top1, abs=1e-6)
    mlflow.set_tracking_uri(server.uri)  # the variable would lose to what an earlier test of this process has set
    model = mlflow.pyfunc.load_model(f"models:/{version.name}@champion")
    rows = [row for row in read_index(seven_digits).to_pylist() if row["split"] == "val"]
    images = []
    for row in rows:
        with (seven_digits / f"val-{row['shard']:05d}.tar").open("rb") as shard:
            shard.seek(row["offset"])
            images.append(shard.read(row["size"]))
    found = model.predict(pd.DataFrame({"image": images}))
    right = sum(classes[0] == row["label"] for classes, row in zip(found["class"], rows, strict=True))
    assert right / len(rows) == pytest.approx(top1, abs=0.01)  # bfloat16 there, float32 here
    assert_prepares_images_as_the_run_did(model, run_dir)
    assert_takes_what_people_send(model, images[0])
    assert all(len(names) == 5 for names in found["name"])
    assert all(sum(scores) <= 1 + 1e-5 for scores in found["probability"])

    tuned = tmp_path / "tuned"
    job = (
        "-m",
        "jobs.finetune",
        "tiny",
        "--parent",
        run_dir,
        "--run-dir",
        tuned,
        "--data.train",
        seven_digits,
        *TRACKED,
    )
    run_ranks(
        1, (*job, "--experiment", "the lab's digits", "--schedule.steps", 4), tmp_path / "third", 300, **variables
    )
    child = only_run(client, tuned)
    assert "mlflow.parentRunId" not in child.data.tags, "a fine-tune isn't hidden under its pretrain run"
    version = champion(client, child.info.run_id)
    assert version.tags["parent_mlflow_run_id"] == run.info.run_id
    assert version.tags["parent_run_dir"] == str(run_dir)


def champion(client: Any, run_id: str) -> Any:
    """The champion under the name that the run's model is registered by."""
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    return client.get_model_version_by_alias(version.name, "champion")


def test_runs_on_other_data_are_other_models(tmp_path: Path) -> None:
    """41 % of four classes doesn't beat 71 % of two: accuracies compete only on the same classes and images."""
    record = Record("key", "lab", "run", {}, {})
    names = []
    facts = [("two", "c2", "e2"), ("four", "c4", "e4"), ("two", "c2", "e3"), ("two", "c3", "e2"), ("two", "c2", "e2")]
    for index, (data, classes, judged) in enumerate(facts):
        folder = tmp_path / f"{index}"
        folder.mkdir()
        write_json(folder / "config.json", {"stage": "finetune", "model": {"variant": "b16"}})
        datasets = [{"name": f"{data}/train", "context": "train"}, {"name": f"{data}/val", "context": "eval"}]
        write_json(folder / "run.json", {"datasets": datasets, "classes_digest": classes, "eval_digest": judged})
        names.append(registered_name(folder, record))
    assert names[0] == names[4]
    assert len(set(names)) == 4
    assert names[0].startswith("lab-b16-finetune-two-")
    assert names[1].startswith("lab-b16-finetune-four-")


def assert_takes_what_people_send(model: Any, jpeg: bytes) -> None:
    """A PNG as well as a JPEG, nothing at all, and a damaged image whose row is named."""
    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(png, "PNG")
    one, two = model.predict(pd.DataFrame({"image": [jpeg, png.getvalue()]}))["probability"]
    assert one[0] == pytest.approx(two[0], abs=0.05)
    assert len(model.predict(pd.DataFrame({"image": []}, dtype=object))) == 0
    with pytest.raises(mlflow.MlflowException, match=r"image 1 .of rows 0 to 1. can't be decoded .* leave it out"):
        model.predict(pd.DataFrame({"image": [jpeg, jpeg[: len(jpeg) // 2]]}))


def assert_prepares_images_as_the_run_did(model: Any, run_dir: Path) -> None:
    """On an image that is far from square, where the two ways of resizing show different things."""
    config, _, weights = checkpoint.read_model(run_dir)
    network = VisionTransformer(config.model, 7)
    network.load_state_dict(weights)
    network.eval()
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    image = simplejpeg.encode_jpeg(np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (50, 200, 3))))
    scores: dict[str, Any] = {}
    for resize in ("central", "square"):
        pixels = torch.from_numpy(eval_image(image, config.model.image_size, resize))[None]  # type: ignore[arg-type]
        with torch.no_grad():
            logits = network(normalise(pixels, torch.float32))
        scores[resize] = (logits.sigmoid() if config.train.loss == "sigmoid" else logits.softmax(-1)).topk(5).values[0]
    found = torch.tensor(model.predict(pd.DataFrame({"image": [image]}))["probability"][0])
    torch.testing.assert_close(found, scores["central"], rtol=1e-4, atol=1e-6)
    assert (found - scores["square"]).abs().max() > 1e-3
