"""The run folder: what is one, where its files' names stand, and how often a start reads each."""

import ast
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from pipeline.checkpoint import format as checkpoint
from pipeline.compare.read_runs import find_run_folders
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.interop.trained_model import is_run_or_checkpoint
from pipeline.runs import folder as run_folder
from pipeline.runs.folder import is_run
from pipeline.runs.overview import collect
from tests.helpers.jobs import job
from tests.helpers.quick_python import executable
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import write_run

REPOSITORY = Path(__file__).parents[2]
NAMES = {
    str(value)
    for name, value in vars(run_folder).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str | Path)
}
# words that are no file's name where they stand alone, and files of the same name elsewhere
WORDS = {"checkpoints", "evaluations", "code", "profile", "nonfinite"}
ELSEWHERE = {  # of transformers' and timm's folders and repositories
    ("config.json", f"pipeline/interop/{name}.py")
    for name in ("hub_models", "hub_push", "model_files", "published_weights")
}

# prepares and starts a training as each rank does, and prints how often it read each file and folder of its run
STARTS = """
import json, os, sys
found, run = {}, sys.argv[1]
def see(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, os.PathLike)):
        path = os.fspath(arguments[0])
        reads = event != "open" or (arguments[2] & (os.O_ACCMODE | os.O_DIRECTORY)) == os.O_RDONLY
        name = os.path.relpath(path, run)
        if reads and os.path.isabs(path) and name[0] != "." and os.path.basename(path)[0] != ".":
            found[name] = found.get(name, 0) + 1
sys.addaudithook(see)
from pipeline.config.serialize import from_dict
from pipeline.config.schema import RunConfig
from pipeline.train.setup import prepare, start
config = from_dict(RunConfig, json.loads(sys.argv[2]))
started = start(config, prepare(config))
print(json.dumps({"step": started.start_step, "found": found}), flush=True)
os._exit(0)
"""


def test_a_resumed_start_reads_each_file_once(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_ranks(1, ("-m", *job(run, digits, "--checkpoint.every", 1, "--checkpoint.keep-last", 3, steps=3)), tmp_path)
    config = json.loads((run / "config.json").read_text())
    status = run_folder.read_status(run)
    assert status is not None
    write_json(run / "status.json", vars(status) | {"state": "running", "step": 2})
    (checkpoint.complete(run)[-1] / "meta.json").unlink()
    done = subprocess.run(
        [str(executable()), "-c", STARTS, str(run), json.dumps(config | {"run_dir": str(run)})],
        capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"VIT_MLFLOW": "off", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["step"] == 2
    read = Counter(result["found"])
    once = {"config.json", "run.json", "status.json", "tracking.json", "metrics.jsonl", "owner.json", "checkpoints"}
    once |= {f"checkpoints/step-00000002/{name}" for name in ("meta.json", "state-000.safetensors")}
    assert set(read) >= once, read
    assert {name: count for name, count in read.items() if count > 1} == {}


def test_what_is_a_run(tmp_path: Path) -> None:
    """One meaning for every command: compare, status, and what takes a model."""
    run = write_run(tmp_path / "runs" / "a")
    waiting = tmp_path / "runs" / "waiting"  # Slurm has tried to start it
    (waiting / "slurm").mkdir(parents=True)
    (waiting / "slurm" / "attempts.tsv").write_text("start\t12\t0\t0\t1\tnode1\n")
    saved = tmp_path / "runs" / "saved" / "checkpoints"
    saved.mkdir(parents=True)
    foreign = tmp_path / "runs" / "foreign"  # a model that transformers saved
    write_json_in(foreign, "config.json")
    sweep = tmp_path / "runs" / "sweep"
    write_json_in(sweep, "tracking.json")
    (tmp_path / "runs" / "source" / "slurm").mkdir(parents=True)  # this project's own code
    folders = sorted((tmp_path / "runs").iterdir())
    runs = [run, saved.parent, waiting]
    assert [path for path in folders if is_run(path)] == runs
    assert [path for path in folders if is_run_or_checkpoint(path)] == runs
    assert [row.name for row in collect([tmp_path / "runs"], {}, 0.0)] == ["a", "saved", "waiting"]
    assert find_run_folders([tmp_path / "runs"]) == [run]  # the others have nothing to compare
    with pytest.raises(UserError, match="contains no run"):
        find_run_folders([sweep])


def write_json_in(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    write_json(folder / name, {})


def test_the_names_of_its_files_stand_in_one_place() -> None:
    assert {"config.json", "metrics.jsonl", "slurm/attempts.tsv", ".mlflow.lock"} <= NAMES
    found = list[tuple[str, str]]()
    for file in [path for top in ("pipeline", "jobs", "data_prep") for path in (REPOSITORY / top).rglob("*.py")]:
        name = str(file.relative_to(REPOSITORY))
        texts = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
        if name != "pipeline/runs/folder.py":
            found += [(text, name) for text in texts if text in NAMES - WORDS]
    assert set(found) <= ELSEWHERE
    assert len(found) == len(set(found))
