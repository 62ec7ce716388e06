"""What holds for every command: its help shows three examples, and common mistakes are one line with exit code 2."""

import re
import runpy
import sys
from importlib import metadata
from pathlib import Path

import pytest

from jobs.vit import COMMANDS
from tests.helpers.mistakes import mistake

MODULES = sorted(module for module, _ in COMMANDS.values())

# arguments that name a path that isn't there, and an option whose value has a wrong type; {there} is a folder that is
MISSING = {
    "data_prep.overlap": ("NOWHERE", "--against", "{there}"),
    "data_prep.index": ("NOWHERE",),
    "data_prep.report": ("NOWHERE",),
    "data_prep.shard": ("NOWHERE", "{there}/out"),
    "data_prep.verify": ("NOWHERE",),
    "jobs.audit": ("NOWHERE",),
    "jobs.cancel": ("NOWHERE",),
    "jobs.compare": ("NOWHERE",),
    "jobs.doctor": ("tiny", "--data", "NOWHERE", "--folder", "{there}"),
    "jobs.evaluate": ("NOWHERE", "--data", "{there}"),
    "jobs.export": ("NOWHERE", "{there}/out"),
    "jobs.finetune": ("tiny", "--run-dir", "{there}/run", "--data.train", "NOWHERE", "--parent", "scratch"),
    "jobs.logs": ("NOWHERE",),
    "jobs.pick": ("NOWHERE",),
    "jobs.plan": ("tiny", "--data.train", "NOWHERE"),
    "jobs.predict": ("NOWHERE", "{there}"),
    "jobs.pretrain": ("tiny", "--run-dir", "{there}/run", "--data.train", "NOWHERE"),
    "jobs.status": ("NOWHERE",),
    "jobs.suite": ("NOWHERE", "--data-root", "{there}"),
    "jobs.sweep": ("tiny", "--run-dir", "{there}/ft", "--data.train", "NOWHERE"),
    "jobs.sync": ("NOWHERE",),
}
TYPED = {
    "data_prep.overlap": ("{there}", "--against", "{there}", "--distance", "far"),
    "data_prep.index": ("{there}", "--workers", "many"),
    "data_prep.report": ("{there}", "--samples", "many"),
    "data_prep.shard": ("{there}", "{there}/out", "--seed", "lucky"),
    "data_prep.verify": ("{there}", "--workers", "many"),
    "jobs.audit": ("{there}", "--step", "last"),
    "jobs.compare": ("{there}", "--against", "hours"),
    "jobs.demo": ("--ranks", "all"),
    "jobs.doctor": ("--stage", "both"),
    "jobs.evaluate": ("{there}", "--data", "{there}", "--batch", "big"),
    "jobs.export": ("{there}", "{there}/out", "--format", "pdf"),
    "jobs.finetune": ("tiny", "--optim.lr", "high"),
    "jobs.launch": ("--ranks", "all"),
    "jobs.logs": ("{there}", "--rank", "first"),
    "jobs.plan": ("tiny", "--nodes", "some"),
    "jobs.predict": ("{there}", "{there}", "--top", "all"),
    "jobs.pretrain": ("tiny", "--optim.lr", "high"),
    "jobs.sweep": ("tiny", "--rates", "high"),
}  # jobs.pick, jobs.status and jobs.sync have no option of another type than text and switch

URL = "s3://bucket/name"  # where only a path will do
URLS = {
    "data_prep.overlap": [("{there}", "--against", "{there}", "--out", URL), (URL, "--against", "{there}")],
    "data_prep.index": [(URL,)],
    "data_prep.report": [(URL,)],
    "data_prep.shard": [("{there}", URL), ("{there}", "pipe:cat")],
    "data_prep.verify": [(URL,)],
    "jobs.audit": [(URL,)],
    "jobs.cancel": [(URL,)],
    "jobs.compare": [(URL,)],
    "jobs.demo": [("--folder", URL)],
    "jobs.evaluate": [(URL, "--data", "{there}"), ("{there}", "--data", "{there}", "--out", URL)],
    "jobs.export": [(URL, "{there}/out"), ("{there}", URL)],
    "jobs.finetune": [("tiny", "--run-dir", URL, "--data.train", "{there}", "--parent", "scratch")],
    "jobs.logs": [(URL,)],
    "jobs.predict": [(URL, "{there}"), ("{there}", "{there}", "--rollout", URL)],
    "jobs.pretrain": [("tiny", "--run-dir", URL, "--data.train", "{there}")],
    "jobs.status": [(URL,)],
    "jobs.sync": [(URL,)],
}


def filled(words: tuple[str, ...], folder: Path) -> list[str]:
    return [word.replace("{there}", str(folder)) for word in words]


@pytest.mark.parametrize("module", MODULES)
def test_help_shows_three_examples(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(module, run_name="__main__")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    starts = "vit|python|make|torchrun|accelerate|srun|sbatch|watch"
    examples = re.findall(rf"^ +((?:\w+=\S+ )*(?:{starts}) .*)$", text, re.M)
    assert len(examples) >= 3, text
    own = (module, f"vit {module.rpartition('.')[2]} ", f"slurm/{module.removeprefix('jobs.')}_", "make demo")
    assert sum(any(words in line for words in own) for line in examples) >= 2, examples


@pytest.mark.parametrize("module", sorted(MISSING))
def test_a_path_that_is_not_there(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, monkeypatch, module, *filled(MISSING[module], tmp_path))
    assert "NOWHERE" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", sorted(URLS))
def test_a_url_for_a_path(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in URLS[module]:
        line = mistake(capsys, monkeypatch, module, *filled(words, tmp_path))
        assert any(f"'{word}' is not a path" in line for word in words), line
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", sorted(TYPED))
def test_a_value_of_another_type(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, monkeypatch, module, *filled(TYPED[module], tmp_path))
    assert TYPED[module][-2].lstrip("-") in line
    assert TYPED[module][-1] in line


@pytest.mark.parametrize("module", MODULES)
def test_an_option_that_is_unknown(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = filled(MISSING.get(module, ()), tmp_path)
    line = mistake(capsys, monkeypatch, module, *words, "--frobnicate", "1")
    assert "--frobnicate" in line
    assert "--help" in line


def test_the_installed_script_is_vit() -> None:
    (script,) = [
        entry for entry in metadata.distribution("vit-pipeline").entry_points if entry.group == "console_scripts"
    ]
    assert (script.name, script.value) == ("vit", "jobs.vit:command")


def test_vit_runs_each_command_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "jobs.export", raising=False)  # runpy warns of one that is imported already
    line = mistake(capsys, monkeypatch, "jobs.vit", "export", "NOWHERE", "out")
    assert "NOWHERE" in line
    assert "did you mean export? There are shard" in mistake(capsys, monkeypatch, "jobs.vit", "exprot")
    sources = {path.stem for path in Path(__file__).parents[2].glob("jobs/*.py")} - {
        "__init__",
        "vit",
        "recipe_options",
    }
    assert sources == {module.removeprefix("jobs.") for module in MODULES if module.startswith("jobs.")}
