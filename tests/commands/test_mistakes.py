"""What users get wrong at each job's command: one line that names field, value and remedy, exit code 2, no traceback.

tests/commands/test_every_command.py has the mistakes common to all commands; those of jobs.export and jobs.predict are
in their own tests, data_prep's in tests/data_prep/test_mistakes.py.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipeline.config.recipes import PRETRAIN as PRETRAIN_RECIPES
from pipeline.imaging import jpeg
from pipeline.train.setup import prepare
from tests.helpers.mistakes import mistake

LOGIN = "https://alice:hunter2@lab.example/in21k"
PRETRAIN = ("tiny", "--run-dir", "{new}", "--data.train", "{digits}")
FINETUNE = (*PRETRAIN, "--parent", "{run}")
EVALUATE = ("{run}", "--data", "{digits}")

# command -> (arguments, what the line must say)
MISTAKES: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "jobs.pretrain": [
        ((), ("RECIPE is missing", "b16")),
        (("tiny", "--run-dir", "{file}", "--data.train", "{digits}"), ("--run-dir", "is not a folder")),
        (("tiny", "--stage", "finetune"), ("--stage finetune", "python -m jobs.finetune")),
        (("tiny", "--run-dir", "{file}/run", "--data.train", "{digits}"), ("--run-dir", "not a writable folder")),
        (("tiny", "--run-dir", "{no_run}", "--data.train", "{digits}"), ("no run.json", "put back a copy")),
        (("tiny", "--run-dir", "{no_classes}", "--data.train", "{digits}"), ("no classes.json", "another folder")),
        (("tiny", "--run-dir", "{new}", "--data.train", "{digits}/train-00000.tar"), ("is a file", "the folder")),
        (("tiny", "--run-dir", "{new}", "--data.train", "{empty}"), ("no dataset.json", "vit shard INPUT")),
        (("tiny", "--run-dir", "{new}", "--data.train", "{bad_info}"), ("dataset.json", "make the dataset again")),
        (("tiny", "--run-dir", "{new}", "--data.train", "{bad_index}"), ("index.parquet", "is damaged")),
        (("tiny", "--run-dir", "{new}", "--data.train", "{digits}", "{seven}"), ("another class map", "--classes")),
        (("tiny", "--run-dir", "{new}", "--data.train", LOGIN), ("URL with a login", "~/.netrc")),
        (("tiny", "--run-dir", "{new}", "--data.train", f"pipe:curl {LOGIN}/{{}}"), ("with a login", "$PASSWORD")),
        (("tiny", "--run-dir", "{new}", "--data.train", "pipe:cat data"), ("has no {}", "ssh host cat")),
        ((*PRETRAIN, "--data.eval", LOGIN), ("URL with a login", "~/.netrc")),
        ((*PRETRAIN, "--data.eval", "{seven}"), ("data.eval", "another class map", "--classes")),
        ((*PRETRAIN, "--data.percent", "0"), ("data.percent 0", "at most 100")),
        ((*PRETRAIN, "--parent", "{run}"), ("--parent", "is for jobs.finetune")),
        ((*PRETRAIN, "--experiment", ""), ("--experiment ''", "name of 1 to 500 characters")),
        ((*PRETRAIN, "--data.eval-split", "test"), ("data.eval_split 'test'", "train, val", "'none'")),
        (
            (*PRETRAIN, "--data.eval-split", "none", "--checkpoint.keep-best", "1"),
            ("checkpoint.keep_best 1 has no effect", "train.eval_every"),
        ),
        ((*PRETRAIN, "--train.seed", str(2**63)), ("train.seed", "is out of range")),
        ((*PRETRAIN, "--optim.momentum", "0"), ("optim.momentum 0", "above 0 and below 1")),
        ((*PRETRAIN, "--train.step-timeout", "100000000000"), ("train.step_timeout", "at most 1e+07")),
        ((*PRETRAIN, "--data.classes", "{strangers}"), ("data.classes", "n99")),
        ((*PRETRAIN, "--data.classes", "{nothing}"), ("data.classes", "is empty", "one wnid per line")),
        ((*PRETRAIN, "--data.weights", "1", "2"), ("data.weights",)),
        ((*PRETRAIN, "--schedule.steps", "0", "--schedule.epochs", "0"), ("schedule.steps 0", "set one of them")),
        ((*PRETRAIN, "--schedule.steps", "0", "--schedule.epochs", "1e308"), ("schedule.epochs", "at most 1e+09")),
        ((*PRETRAIN, "--data.augment", "light2", "--train.micro-batch", "1"), ("is odd", "multiple of it times the")),
        (("tiny", "--run-dir", "{bad_config}", "--data.train", "{digits}"), ("config.json", "put back a copy")),
        (("tiny", "--run-dir", "{run}", "--data.train", "{digits}"), ("another configuration", "--run-dir")),
    ],
    "jobs.finetune": [
        ((), ("RECIPE is missing", "b16_512")),
        (("b17",), ("'b17'", "did you mean b16?")),
        (("b16_paper",), ("'b16_paper'", "b16_224")),
        (PRETRAIN, ("--parent is missing", "'scratch'")),
        ((*PRETRAIN, "--parent", "{empty}"), ("has no config.json", "an official .npz")),
        ((*PRETRAIN, "--parent", "{file}"), ("is not a .npz or .pth file",)),
        ((*PRETRAIN, "--stage", "pretrain"), ("--stage pretrain", "python -m jobs.pretrain")),
        ((*PRETRAIN, "--parent", "{unsaved}"), ("no complete checkpoint",)),
        (("b16", *FINETUNE[1:], "--train.micro-batch", "1"), ("model.variant is 'b16'", "use the recipe of tiny")),
        (("tiny", "--data.train", "{digits}", "--parent", "{run}"), ("--run-dir is missing",)),
        (("tiny", "--run-dir", "{new}", "--parent", "{run}"), ("--data.train is missing", "data_prep.shard")),
        ((*FINETUNE, "--train.global-batch", "33"), ("train.global_batch 33", "such as 11")),
        ((*FINETUNE, "--data.train-split", "test"), ("'test'", "train, val")),
        (("tiny", "--run-dir", "{new}", "--parent", "{run}", "--data.train", LOGIN), ("URL with a login",)),
    ],
    "jobs.evaluate": [
        ((), ("MODEL", "--data")),
        (("{run}",), ("--data",)),
        (("{file}", "--data", "{digits}"), ("is not a .npz or .pth file", "by vit export")),
        (("{empty}", "--data", "{digits}"), ("has no config.json", "a run folder", "by vit export")),
        (("{unsaved}", "--data", "{digits}"), ("no complete checkpoint",)),
        (("{bad_classes}", "--data", "{digits}"), ("classes.json", "has 0 classes, but the checkpoint has 10")),
        (("{run}", "--data", "{nowhere}"), ("nowhere", "does not exist")),
        (("{run}", "--data", "{empty}"), ("no dataset.json", "vit shard")),
        (("{run}", "--data", "{bad_index}"), ("index.parquet", "is damaged")),
        (("{run}", "--data", "{seven}"), ("another class map (7 classes)", "(10 classes)", "--classes")),
        (("{run}", "--data", LOGIN), ("URL with a login",)),
        ((*EVALUATE, "--split", "test"), ("'test'", "train, val")),
        ((*EVALUATE, "--batch", "0"), ("--batch 0", "at least 1")),
        ((*EVALUATE, "--workers", "-1"), ("--workers -1", "at least 0")),
        ((*EVALUATE, "--probe", "knn", "--shots", "-1"), ("--shots -1", "at least 0")),
        ((*EVALUATE, "--probe", "knn", "--shots", "1", "--seed", "-1"), ("--seed -1", "at least 0")),
        ((*EVALUATE, "--shots", "5"), ("--shots 5 has no effect", "--probe knn")),
        ((*EVALUATE, "--probe", "knn", "--out", "{new}"), ("--out", "has no effect", "leave out --probe")),
        ((*EVALUATE, "--out", "{file}"), ("--out", "is a file")),
        ((*EVALUATE, "--real", "{nowhere}"), ("--real", "nowhere", "real.json")),
        ((*EVALUATE, "--real", "{real}"), ("--real", "ImageNet-2012's validation set")),
        ((*EVALUATE, "--probe", "svm"), ("--probe", "'svm'", "knn")),
        ((*EVALUATE, "--probe", "knn", "--train-split", "test"), ("'test'", "train, val")),
        ((*EVALUATE, "--probe", "knn", "--train-split", "val"), ("--train-split 'val'", "two splits")),
        ((*EVALUATE, "--dtype", "int8"), ("--dtype", "bfloat16")),
    ],
    "jobs.plan": [
        ((), ("RECIPE is missing", "b16_paper")),
        (("b17",), ("'b17'", "did you mean b16?")),
        (("tiny", "--stage", "both"), ("--stage", "'both'", "finetune")),
        (("b16_paper", "--stage", "finetune"), ("'b16_paper'", "b16_512")),
        (("b16", "--nodes", "0"), ("--nodes 0", "at least 1")),
        (("b16", "--gpus-per-node", "-8"), ("--gpus-per-node -8", "at least 1")),
        (("b16", "--device", "TPU"), ("--device 'TPU'", "H100")),
        (("b16", "--mfu", "0"), ("--mfu 0", "such as 0.4")),
        (("b16", "--mfu", "40"), ("--mfu 40", "at most 1")),
        (("b16", "--model.image-size", "33"), ("model.image_size 33", "set model.image_size 32")),
        (("b16", "--train.micro-batch", "0"), ("train.micro_batch 0", "at least 1")),
        (("b16", "--nodes", "3"), ("train.global_batch", "such as")),
        (("b16", "--schedule.steps", "0", "--schedule.epochs", "0"), ("schedule.steps 0", "set one of them")),
        (("b16", "--plot", "{empty}"), ("--plot", "must end in .png")),
        (("b16", "--plot", "lr.doc"), ("--plot", "must end in .png")),
        (("b16", "--data.train", LOGIN), ("URL with a login",)),
    ],
    "jobs.doctor": [
        (("b17",), ("'b17'", "b16_paper")),
        (("b16_paper", "--stage", "finetune"), ("'b16_paper'", "b16_512")),
        (("tiny", "--stage", "both"), ("--stage", "'both'", "finetune")),
        (("tiny", "l16"), ("l16",)),
        (("tiny", "--folder"), ("--folder",)),
        (("--json", "{empty}"), ("--json", "can't be written", "name a file")),
        (("tiny", "--split"), ("--split",)),
    ],
    "jobs.launch": [
        (("--ranks", "2"), ("COMMAND is missing", "pretrain, finetune, evaluate")),
        (("--ranks", "2", "shard", "in", "out"), ("COMMAND 'shard'", "pretrain, finetune, evaluate")),
        (("pretrain", "tiny"), ("--ranks is missing", "no GPU")),
        (("--ranks", "0", "pretrain", "tiny"), ("--ranks 0", "at least 1")),
        (("--ranks", "all", "pretrain"), ("--ranks", "all")),
        (("--gpus", "2", "pretrain"), ("--gpus",)),
    ],
    "jobs.compare": [
        ((), ("RUN folders", "--experiment")),
        (("{file}",), ("RUN", "vit finetune")),
        (("{empty}",), ("contains no run", "vit pretrain")),
        (("{run}", "--csv", "--json"), ("--latex", "choose one")),
        (("{run}", "--recipe", "l16"), ("--recipe 'l16'", "the recipes are pretrain tiny")),
        (("{run}", "--tag", "team", "vision"), ("{'team': 'vision'}",)),
        (("{run}", "--tag", "team"), ("--tag",)),
        (("{run}", "--parent", "other"), ("--parent 'other'",)),
        (("{run}", "--against", "hours"), ("--against", "device-hours")),
        (("--experiment", "vit"), ("MLFLOW_TRACKING_URI", "--mlflow sqlite")),
        (("--experiment", "vit", "--mlflow", "sqlite:///nowhere.db"), ("the file 'nowhere.db' does not exist",)),
        (("--experiment", "vit", "--mlflow", "http://alice:hunter2@127.0.0.1:9"), ("can't be read from http://<hid",)),
        (("{run}", "--out", "{file}"), ("--out", "not a writable folder")),
        (("{bad_config}",), ("config.json", "put back a copy")),
        (("{bad_run}",), ("run.json", "put back a copy")),
        (("{bad_metrics}",), ("metrics.jsonl is damaged at byte 0", "delete that line")),
    ],
    "jobs.status": [
        (("{file}",), ("FOLDER", "is not a folder")),
        (("{empty}",), ("holds neither a run nor a campaign", "--run-dir")),
        ((), ("work/runs", "--run-dir")),
        (("{run}", "{nowhere}"), ("nowhere", "does not exist")),
        (("--json", "{run}"), ("--json", "can't be written", "- for the standard output")),
        (("{bad_status}",), ("status.json", "put back a copy")),
        (("{bad_record}",), ("tracking.json", "put back a copy")),
        (("{bad_metrics}",), ("metrics.jsonl is damaged at byte 0", "delete that line")),
    ],
    "jobs.sync": [
        ((), ("RUN is missing",)),
        (("{file}",), ("no tracking.json",)),
        (("{empty}",), ("no tracking.json",)),
        (("{run}", "{nowhere}"), ("nowhere", "does not exist")),
        (("--run", "{run}"), ("--run",)),
        (("{run}", "--uri", "http://127.0.0.1"), ("--uri",)),
        (("{bad_record}",), ("tracking.json", "put back a copy")),
    ],
    "jobs.audit": [
        ((), ("RUN",)),
        (("{file}",), ("has no config.json", "jobs.pretrain")),
        (("{bad_config}",), ("config.json", "put back a copy")),
        (("{strange_config}",), ("'colour'", "remove it")),
        (("{bad_run}",), ("run.json", "put back a copy")),
        (("{no_ledger}",), ("has no ledger.txt",)),
        (("{bad_ledger}",), ("no step in its ledger.txt",)),
        (("{run}", "--step", "-1"), ("--step -1", "give 1 or more")),
        (("{run}", "--step", "61"), ("--step 61", "60 steps")),
        (("{run}", "--step", "1", "--crops", "0"), ("--crops 0", "at least 1")),
        (("{run}", "--step", "1", "--out", "{empty}"), ("--out", "name a .png file")),
        (("{run}", "--step", "1", "--out", "{nowhere}/step.png"), ("--out", "a folder that exists")),
        (("{run}", "--data", "{seven}"), ("--data", "was trained on")),
        (("{run}", "--data", LOGIN), ("URL with a login",)),
    ],
    "jobs.pick": [
        ((), ("RUN is missing",)),
        (("{runs}",), ("a folder of runs, not a run", "name the runs in it")),
        (("{file}",), ("not started", "leave it out")),
        (("{unsaved}",), ("not started", "leave it out")),
        (("{stopped}",), ("is not finished (stopped)", "start it again")),
        (("{failed}",), ("none of the 1 runs finished", "see their logs")),
        (("{run}", "--by", "eval/top1"), ("--by 'eval/top1'", "--val-fraction")),
        (("{run}", "--by", "train/loss", "--link", "{empty}"), ("--link", "is not a symbolic link")),
        (("{run}", "--by", "train/loss", "--link", "{nowhere}/best"), ("--link", "is not a folder")),
        (("{bad_status}",), ("status.json", "put back a copy")),
        (("{run}", "--best"), ("--best",)),
    ],
    "jobs.demo": [
        (("--ranks", "0"), ("--ranks 0", "at least 1")),
        (("--seed", "-1"), ("--seed -1", "at least 0")),
        (("--pretrain-steps", "-1"), ("--pretrain-steps -1", "at least 1")),
        (("--finetune-steps", "-1"), ("--finetune-steps -1", "at least 1")),
        (("--folder", "{file}"), ("--folder", "not a writable folder")),
        (("--folder", "{file}/demo"), ("--folder", "not a writable folder")),
        (("--seed", "lucky"), ("--seed", "lucky")),
        (("now",), ("now",)),
        (("--pretrain-steps", "1e3"), ("--pretrain-steps", "1e3")),
        (("--folder",), ("--folder",)),
    ],
}
CASES = [(module, *case) for module, cases in MISTAKES.items() for case in cases]


@pytest.fixture(scope="module")
def places(
    trained: Path, digits: Path, seven_digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The paths behind the placeholders: a finished run, datasets, and copies of them with one wrong file each."""
    room = tmp_path_factory.mktemp("mistakes")

    def run_with(name: str, file: str, content: str | None) -> Path:
        """A copy of the finished run with one file replaced or removed."""
        folder = room / name
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints"))
        (folder / "checkpoints").symlink_to(trained / "checkpoints")
        (folder / file).unlink()
        if content is not None:
            (folder / file).write_text(content)
        return folder

    def data_with(name: str, file: str, content: str) -> Path:
        shutil.copytree(digits, room / name)
        (room / name / file).write_text(content)
        return room / name

    for name, text in (("file", "text"), ("strangers", "n99\n"), ("nothing", ""), ("real", "[[1]]")):
        (room / name).write_text(text)
    (room / "empty").mkdir()
    (room / "unsaved").mkdir()
    shutil.copy(trained / "run.json", room / "unsaved")
    names = ("file", "strangers", "nothing", "real", "empty", "unsaved", "new", "nowhere")
    config, status = (json.loads((trained / name).read_text()) for name in ("config.json", "status.json"))
    return {
        "run": trained,
        "runs": trained.parent,
        "digits": digits,
        "seven": seven_digits,
        **{name: room / name for name in names},
        "bad_config": run_with("bad_config", "config.json", "{"),
        "strange_config": run_with("strange_config", "config.json", json.dumps(config | {"colour": "blue"})),
        "bad_run": run_with("bad_run", "run.json", "{"),
        "bad_status": run_with("bad_status", "status.json", "[]"),
        "stopped": run_with("stopped", "status.json", json.dumps(status | {"state": "stopped"})),
        "failed": run_with("failed", "status.json", json.dumps(status | {"state": "failed"})),
        "bad_record": run_with("bad_record", "tracking.json", "{}"),
        "bad_metrics": run_with("bad_metrics", "metrics.jsonl", "no line of ours\n"),
        "bad_classes": run_with("bad_classes", "classes.json", "[]"),
        "no_run": run_with("no_run", "run.json", None),
        "no_classes": run_with("no_classes", "classes.json", None),
        "no_ledger": run_with("no_ledger", "ledger.txt", None),
        "bad_ledger": run_with("bad_ledger", "ledger.txt", "no line of ours\n"),
        "bad_info": data_with("bad_info", "dataset.json", "{"),
        "bad_index": data_with("bad_index", "index.parquet", "text"),
    }


@pytest.mark.parametrize(
    ("module", "arguments", "parts"), CASES, ids=[f"{module}-{' '.join(words)}" for module, words, _ in CASES]
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    module: str,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))
    words = arguments
    for name, path in places.items():
        words = tuple(word.replace(f"{{{name}}}", str(path)) for word in words)
    line = mistake(capsys, monkeypatch, module, *words)
    for part in parts:
        assert part in line
    assert "hunter2" not in line
    assert "---" not in line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not places["new"].exists()


def test_a_start_says_that_the_fast_decoder_was_not_built(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, digits: Path, tmp_path: Path
) -> None:
    """Without libjpeg-turbo's headers the installation skips it, and only the speed would show it."""
    monkeypatch.setattr(jpeg, "HAS_REGION_DECODER", False)
    recipe = PRETRAIN_RECIPES["tiny"].config
    for decode in ("region", "full"):
        caplog.clear()
        data = dataclasses.replace(recipe.data, train=(str(digits),), decode=decode)
        prepare(dataclasses.replace(recipe, run_dir=tmp_path / "run", data=data))
        assert ("libjpeg-dev" in caplog.text) == (decode == "region")
