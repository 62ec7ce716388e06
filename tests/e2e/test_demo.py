"""The whole path as `make demo` walks it, with few steps: each command real, each result there."""

import json
import sqlite3
from pathlib import Path

from tests.helpers.launch import run
from tests.helpers.quick_python import executable


def test_the_demo_walks_the_whole_path(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = ("-m", "jobs.demo", "--folder", folder, "--pretrain-steps", 12, "--finetune-steps", 4)
    output = run(
        *demo, log=tmp_path / "log", timeout=280, python=str(executable()), VIT_MLFLOW="", MLFLOW_TRACKING_URI=""
    )
    for words in (
        "Held-out accuracy",
        "Pretraining is worth",
        "compare.html",
        "report.html",
        "mlflow ui --backend-store-uri sqlite:///",
        "?workflowType=machine_learning",
    ):
        assert words in output
    assert "untested" not in output, "DeepSpeed's word for torch's SGD"

    pictures = {path.name for path in (folder / "compare").glob("*.png")}
    assert {"train_loss.png", "eval_top1.png", "bars_eval_top1.png"} <= pictures

    assert (folder / "compare" / "compare.html").is_file()
    assert (folder / "report.html").is_file()

    runs = folder / "runs"
    evaluated = [line for line in (runs / "pretrain" / "metrics.jsonl").read_text().splitlines() if "eval/top1" in line]
    assert len(evaluated) == 6, "a curve, not one point"
    held_out = {name: json.loads((folder / "shards" / name / "dataset.json").read_text())["samples"]["val"]
                for name in ("seven", "ten")}  # fmt: skip
    assert held_out["ten"] > held_out["seven"] > 0
    facts = json.loads((runs / "finetune" / "run.json").read_text())
    assert facts["parent"]["run_dir"] == str(runs / "pretrain")
    assert json.loads((runs / "scratch" / "run.json").read_text())["parent"] == {}

    with sqlite3.connect(runs / "mlflow.db") as database:
        names = {name for (name,) in database.execute("select name from runs")}
        ids = dict(database.execute("select name, run_uuid from runs"))
        tags = dict(database.execute("select key, value from tags where run_uuid = ?", [ids["finetune"]]))
        steps = database.execute(
            "select count(*) from metrics where run_uuid = ? and key = 'train/loss'", [ids["pretrain"]]
        ).fetchone()[0]
    database.close()
    assert names == {"pretrain", "finetune", "scratch"}
    assert tags["parent_mlflow_run_id"] == ids["pretrain"]
    assert steps == 3  # steps 1, 10 and 12: the recipe logs the first, every tenth and the last
