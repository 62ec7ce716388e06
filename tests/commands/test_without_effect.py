"""Each option of each command, given where it has no effect, is refused in a line that names it and the remedy."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import plan
from jobs.vit import COMMANDS
from pipeline.config.schema import ModelConfig
from pipeline.core.needs import Need
from tests.helpers.mistakes import mistake
from tests.helpers.runs import make_run

MODEL = ("jobs.evaluate", "{run}", "--data", "{digits}")
PROBE = (*MODEL, "--probe", "knn")
# the command without effect for its last option (and value) -> what is said of it
REFUSED = [
    (MODEL, ("--trust-code",), "unless MODEL is a torch.export archive (.pt2): leave it out, or name such a file"),
    (MODEL, ("--format", "svg"), "without a confusion plot: leave it out, or add --out FOLDER or --log"),
    (MODEL, ("--format", "png"), "without a confusion plot"),  # the default, and yet it was asked for
    (MODEL, ("--shots", "5"), "without a probe: leave it out, or add --probe knn or linear"),
    (MODEL, ("--shots", "0"), "without a probe"),
    (MODEL, ("--train-split", "val"), "without a probe"),
    (MODEL, ("--seed", "1"), "add --probe knn or linear and --shots N"),
    (PROBE, ("--seed", "1"), "unless a probe is fitted to some samples of each class"),
    (
        PROBE,
        ("--out", "{new}"),
        "with --probe, which does not use the model's head: leave it out, or leave out --probe",
    ),
    (PROBE, ("--real", "{file}"), "which does not use the model's head"),
    ((*PROBE, "--log"), ("--format", "svg"), "without a confusion plot"),
    (("jobs.predict", "{run}", "{file}"), ("--trust-code",), "torch.export archive"),
    (("jobs.predict", "{onnx}", "{file}"), ("--trust-code",), "torch.export archive"),
    (("jobs.suite", "{run}", "--data-root", "{new}"), ("--trust-code",), "torch.export archive"),
    (("jobs.suite", "{run}", "--features", "{digits}"), ("--only", "a,r"), "add --data-root FOLDER"),
    (("jobs.suite", "{run}", "--features", "{digits}"), ("--partial",), "without downloads"),
    (
        ("jobs.compare", "{run}"),
        ("--mlflow", "sqlite:///a.db"),
        "on RUN folders: leave it out, or name an --experiment",
    ),
    (("jobs.compare", "{run}"), ("--against", "step"), "without curves: leave it out, or add --out FOLDER or --html"),
    (("jobs.compare", "{run}", "--html"), ("--format", "pdf"), "without plots: leave it out, or add --out FOLDER"),
    (("jobs.compare", "{run}", "--latex"), ("--all",), "(each has every row): leave it out, or leave out that one"),
    (("jobs.compare", "{run}", "--csv", "-"), ("--all",), "when --csv -, --json - or --latex replaces the table"),
    (("jobs.compare", "{run}", "--json"), ("--all",), "replaces the table"),
    (("jobs.export", "{run}", "{new}"), ("--private",), "without --push: leave it out, or add --push OWNER/NAME"),
    (("jobs.fetch",), ("--out", "{new}"), "without NAME: leave it out, or name the weights to download"),
    (("jobs.doctor",), ("--stage", "finetune"), "without a recipe: leave it out, or name RECIPE first"),
    (("jobs.doctor",), ("--data", "{digits}"), "without a recipe"),
    (("jobs.doctor", "tiny"), ("--split", "val"), "without --data: leave it out, or add --data DATASET"),
    (("jobs.audit", "{run}"), ("--out", "a.png"), "without --step: leave it out, or add --step N"),
    (("jobs.audit", "{run}"), ("--crops", "8"), "without --step"),
    (
        ("data_prep.overlap", "{digits}", "--against", "{digits}", "--distance", "-1"),
        ("--correlation", "0.9"),
        "when only identical files are looked for: leave it out, or give a --distance of 0 to 7",
    ),
    (("data_prep.report", "{digits}", "--samples", "0"), ("--seed", "1"), "leave it out, or show some samples"),
    (("data_prep.shard", "{folder}", "{new}"), ("--quality", "80"), "leave it out, or add --resize"),
    (("data_prep.shard", "{folder}", "{new}", "--upright"), ("--quality", "80"), "on images that keep their size"),
]
# what is refused in other words
OTHERS = [
    (("data_prep.shard", "{folder}", "{new}", "--label", "txt"), "--label txt has no effect on a folder of images"),
    (("jobs.doctor", "--", "--optim.lr", "1"), "the options after -- need a recipe"),
    (("jobs.doctor", "tiny", "--data", "a", "--", "--data.train=b"), "--data replaces --data.train after --"),
    (("jobs.predict", "{run}", "{file}", "--average"), "average"),
    (("jobs.predict", "{onnx}", "{file}", "--average"), "leave out --average and --dtype"),
    (("jobs.predict", "{onnx}", "{file}", "--dtype", "bfloat16"), "leave out --average and --dtype"),
    (("jobs.export", "{onnx}", "{new}", "--average"), "--average"),
    (("jobs.submit", "shard", "a", "b", "--gpus-per-node", "2"), "--gpus-per-node 2 has no effect"),
    (("jobs.submit", "command", "--gpus-per-node", "2", "true"), "--gpus-per-node 2 has no effect"),
    (("jobs.submit", "command", "--no-check", "true"), "--no-check has no effect with command"),
    (("jobs.submit", "evaluate", "m", "--nodes", "2"), "--nodes is for pretrain and finetune"),
]


@pytest.fixture(scope="module")
def places(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, an ONNX export, a file, and folders; read only."""
    room = tmp_path_factory.mktemp("places")
    make_run(room / "run", ModelConfig("tiny", 32))
    (room / "onnx").mkdir()
    (room / "onnx" / "model.onnx").touch()  # refused before it is read
    (room / "file").write_text("text")
    (room / "folder" / "cat").mkdir(parents=True)
    names = ("run", "onnx", "file", "folder", "new")
    return {"digits": digits, **{name: room / name for name in names}}


@pytest.mark.parametrize(("command", "option", "part"), REFUSED)
def test_an_option_without_effect_is_refused(
    command: tuple[str, ...],
    option: tuple[str, ...],
    part: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    module, *words = (word.format(**places) for word in (*command, *option))
    line = mistake(capsys, monkeypatch, module, *words)
    assert line.startswith(f"error: {' '.join(option).format(**places)} has no effect "), line
    assert part in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "part"), OTHERS)
def test_the_others_are_refused_too(
    command: tuple[str, ...],
    part: str,
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, *words = (word.format(**places) for word in command)
    assert part in mistake(capsys, monkeypatch, module, *words)


def needs_of(module: str) -> dict[str, Need]:
    return getattr(importlib.import_module(module), "NEEDS", {})


def test_every_need_of_every_command_is_in_the_table() -> None:
    stated = {(module, name) for module, _ in COMMANDS.values() for name in needs_of(module)}
    tested = {(command[0], option[0].removeprefix("--").replace("-", "_")) for command, option, _ in REFUSED}
    assert tested == stated


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        ("jobs.evaluate", "format", {"probe": "none", "out": None, "log": True}),
        ("jobs.evaluate", "format", {"probe": "none", "out": Path("a"), "log": False}),
        ("jobs.evaluate", "seed", {"probe": "linear", "shots": 5}),
        ("jobs.evaluate", "shots", {"probe": "knn"}),
        ("jobs.evaluate", "real", {"probe": "none"}),
        ("jobs.compare", "against", {"out": None, "html": True}),
        ("jobs.compare", "all", {"latex": False, "csv": "a.csv", "json": ""}),
        ("jobs.doctor", "split", {"data": "a"}),
        ("jobs.audit", "crops", {"step": 3}),
        ("data_prep.overlap", "correlation", {"distance": 0}),
        ("data_prep.shard", "quality", {"resize": "short=256"}),
    ],
)
def test_an_option_with_an_effect_is_taken(module: str, name: str, options: dict[str, Any]) -> None:
    assert needs_of(module)[name].met(type("Options", (), options))


def test_a_switch_turned_off_asks_for_nothing(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, monkeypatch, "jobs.predict", places["run"], places["new"], "--no-trust-code", "--top", "0")
    assert line == "error: --top 0 is too small: give at least 1"


def test_plan_s_default_suits_every_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """tiny's batch of 64 is 2 micro-batches, too few for the usual node of 8 GPUs."""
    for words, gpus in ((("tiny",), 2), (("b16",), 8), (("tiny", "--train.micro-batch", "4"), 8)):
        monkeypatch.setattr(sys, "argv", ["plan", *words, "--json"])
        assert plan.main() == 0
        assert json.loads(capsys.readouterr().out)["gpus"] == gpus
