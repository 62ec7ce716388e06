"""Two real ranks that are stopped, requeued and finish: metrics, lineage, data sets, and the model in the registry."""

import json
import signal
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from pipeline import spool
from pipeline.mlflow_sync import read_sent
from pipeline.shards import read_index
from tests.ranks import Ranks, run_ranks
from tests.tracking.server import Server
from tests.tracking.test_sync import only_run, shown

TINY = (
    "--data.flip", False, "--data.min-area", 0.5, "--data.workers", 0, "--train.global-batch", 32,
    "--train.micro-batch", 16, "--train.log-every", 1, "--schedule.steps", 30, "--schedule.warmup-steps", 4,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of mlflow's model loader and of what it imports
def test_a_requeued_training_is_one_run_with_its_model_in_the_registry(
    server: Server, seven_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    job = ("-m", "jobs.pretrain", "tiny", "--run-dir", run_dir, "--data.train", seven_digits, *TINY)
    job += ("--experiment", "digits")
    variables = {"VIT_MLFLOW": "on", "MLFLOW_TRACKING_URI": server.uri}
    with Ranks(2, job, tmp_path / "first", **variables) as ranks:
        ranks.wait_for("step 5/30", 120)
        ranks.signal(1, signal.SIGUSR1)
        assert [rank.code for rank in ranks.wait(180)] == [75, 75]
    run_ranks(2, job, tmp_path / "second", 300, **variables)

    client = MlflowClient(server.uri)
    run = only_run(client, run_dir)
    record, sent = spool.read_record(run_dir), read_sent(run_dir)
    assert record is not None
    assert sent is not None
    assert run.info.status == "FINISHED"
    assert [attempt.state for attempt in record.attempts] == ["KILLED", "FINISHED"]
    assert run.data.tags["attempts"] == "2"
    lines = spool.effective(spool.read_lines(run_dir / spool.METRICS)[0], record.attempts)
    for name in ("train/loss", "train/lr", "eval/top1", "progress/device_hours", "progress/goodput"):
        latest = {
            point.step: shown(point.value)
            for point in sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.timestamp)
        }
        assert latest == {line.step: shown(line.metrics[name]) for line in lines if name in line.metrics}
    assert run.data.params["train.global_batch"] == "32"
    assert "data.flip True -> False" in run.data.tags["recipe.changed"]
    info = json.loads((seven_digits / "dataset.json").read_text())
    assert {(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs} == {
        (f"{info['name']}/{split}", info["digest"]) for split in ("train", "val")
    }

    version = client.get_model_version_by_alias("digits-tiny-pretrain", "champion")
    assert version.run_id == run.info.run_id
    top1 = lines[-1].metrics["eval/top1"]
    assert float(version.tags["top1"]) == pytest.approx(top1, abs=1e-6)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    model = mlflow.pyfunc.load_model("models:/digits-tiny-pretrain@champion")
    rows = [row for row in read_index(seven_digits).to_pylist() if row["split"] == "val"]
    images = []
    for row in rows:
        with (seven_digits / f"val-{row['shard']:05d}.tar").open("rb") as shard:
            shard.seek(row["offset"])
            images.append(shard.read(row["size"]))
    found = model.predict(pd.DataFrame({"image": images}))
    right = sum(classes[0] == row["label"] for classes, row in zip(found["class"], rows, strict=True))
    assert right / len(rows) == pytest.approx(top1, abs=0.01)  # bfloat16 there, float32 here
    assert all(len(names) == 5 for names in found["name"])
    assert all(sum(scores) <= 1 + 1e-5 for scores in found["probability"])
