"""The whole path as `make demo` walks it, with few steps: each command real, each result there."""

import json
import re
import sqlite3
from pathlib import Path

from tests.helpers.launch import run
from tests.helpers.quick_python import executable
from tests.helpers.terminal import CTRL_C, Terminal


def test_ctrl_c_saves_and_the_demo_continues_there(tmp_path: Path) -> None:
    demo = ("-m", "jobs.demo", "--folder", tmp_path / "demo", "--pretrain-steps", 100_000, "--finetune-steps", 1)
    command = (executable(), *demo)
    with Terminal(command) as terminal:
        terminal.wait_for("step 10/")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        (saved,) = set(re.findall(r"saved at step (\d+); run the same command to resume", terminal.text))
        assert terminal.text.count("the demo is stopped; run it again to continue from here") == 1
        assert "Traceback" not in terminal.text
    with Terminal(command) as terminal:
        terminal.wait_for(f"resumes after step {saved}")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text


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
