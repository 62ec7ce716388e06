"""vit: version, misspelt commands, completion in a real shell, and the line outside the virtual environment."""

import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.vit import COMMANDS, main
from pipeline.core.cli import as_called
from pipeline.core.version import VERSION
from tests.helpers.launch import REPOSITORY
from tests.helpers.terminal import Terminal
from tests.helpers.waiting import wait_until

MODULES = sorted(module for module, _ in COMMANDS.values())


def vit(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.vit", *words],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("module", [*MODULES, "jobs.vit"])
def test_every_command_has_a_version(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.setattr(sys, "argv", [module, "--version"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out == f"vit-pipeline {VERSION}\n"


@pytest.mark.parametrize("name", ["shard", "pretrain", "submit"])
def test_help_calls_commands_as_the_user_did(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = COMMANDS[name][0]
    monkeypatch.delitem(sys.modules, module, raising=False)  # runpy warns of one that is imported already
    monkeypatch.setattr(sys, "argv", ["vit", name, "--help"])
    with contextlib.suppress(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert f"usage: vit {name} " in printed
    assert f"\n  vit {name} " in printed, "the examples too"
    assert not re.search(r"(?<!-m )\b(?:jobs|data_prep)\.[a-z]+", printed), "in options, too; torchrun needs modules"
    assert as_called(f"python -m {module}") == f"python -m {module}"


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"pretrain", "finetune", "sweep", "plan", "submit"}))
def test_help_states_each_default_once(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, COMMANDS[name][0], raising=False)
    monkeypatch.setattr(sys, "argv", ["vit", name, "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.suppress(SystemExit):
        main()
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: )" not in printed
    assert "(default: None)" not in printed
    assert not [option for option in printed.split(" --") if "Default: " in option and "(default: " in option]


def test_usage_shows_what_is_required_and_what_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, usage in (("launch", "[-h] COMMAND ..."), ("fetch", "[-h] [NAME]"), ("predict", "MODEL IMAGE ...")):
        monkeypatch.delitem(sys.modules, COMMANDS[name][0], raising=False)
        monkeypatch.setattr(sys, "argv", ["vit", name, "--help"])
        with contextlib.suppress(SystemExit):
            main()
        assert usage in capsys.readouterr().out.partition("\n")[0]


def test_misspelt_commands_and_recipes_are_guessed() -> None:
    done = vit("pretrian", "tiny")
    assert done.returncode == 2
    assert "COMMAND 'pretrian' is unknown: did you mean pretrain? There are shard" in done.stderr
    done = vit("pretrain", "vit_large_patch16_224")
    assert done.returncode == 2
    assert "'vit_large_patch16_224' is unknown: did you mean l16?" in done.stderr
    assert vit("pretrain", "tiny", "--stage", "finetune").stderr.endswith("another command: use vit finetune\n")
    assert vit("completion").stderr == "error: vit completion (nothing): name your shell, bash or zsh\n"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """What bash offers at the end of a line, by the script that vit prints and bash's own machinery."""
    done = vit("completion", "bash")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    path = tmp_path_factory.mktemp("completion") / "vit"
    path.write_text(done.stdout)

    def offered(line: str) -> list[str]:
        ask = f"""
            source {path}
            COMP_LINE=$1 COMP_POINT=${{#1}}
            read -ra COMP_WORDS <<<"$1"
            [[ $1 == *" " ]] && COMP_WORDS+=("")
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            function=$(complete -p vit); function=${{function##*-F }}; function=${{function%% *}}
            $function vit "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        shown = subprocess.run(
            ["bash", "-c", ask, "bash", line], capture_output=True, text=True, check=True, timeout=120
        )
        assert shown.stderr == ""
        return shown.stdout.split()

    return offered


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ("vit ", set(COMMANDS) | {"completion", "--version"}),
        ("vit pre", {"pretrain", "predict"}),
        ("vit pretrain ", {"b16", "l16", "tiny"}),
        ("vit finetune b16_2", {"b16_224"}),
        ("vit pretrain b16 --optim.l", {"--optim.lr"}),
        ("vit pretrain b16 --data.no-", set()),
        ("vit shard photos/ --up", {"--upright"}),
        ("vit shard photos/ --no-up", {"--no-upright"}),
        ("vit overlap --ag", {"--against"}),
        ("vit completion ", {"bash", "zsh"}),
        ("vit shard photos", set()),  # a file: readline's own completion
    ],
)
def test_bash_completes(line: str, there: set[str], complete: Callable[[str], list[str]]) -> None:
    found = set(complete(line))
    assert there <= found
    if not there:
        assert not found
    assert not {word for word in found if not word.startswith(line.rpartition(" ")[2])}


@pytest.fixture(scope="module")
def zsh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script that vit prints for zsh, and another folder to be completed."""
    folder = tmp_path_factory.mktemp("zsh")
    (folder / "_vit").write_text(vit("completion", "zsh").stdout)
    (folder / "photos").mkdir()
    return folder


def test_zsh_has_the_same_words(complete: Callable[[str], list[str]]) -> None:
    done = vit("completion", "zsh")
    assert done.stdout.startswith("#compdef vit\n")
    assert all(f"      {name}) compadd -- " in done.stdout for name in COMMANDS)
    assert set(complete("vit verify --")) <= set(done.stdout.split())


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed (.ci/install installs it)")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("vit pretr", "vit pretrain "),
        ("vit completion z", "vit completion zsh "),
        ("vit pretrain b16_de", "vit pretrain b16_deit3"),
        ("vit pretrain b16 --optim.lay", "vit pretrain b16 --optim.layer-decay "),
        ("vit shard in out --upr", "vit shard in out --upright "),
        ("vit overlap phot", "vit overlap photos/"),
    ],
)
def test_zsh_completes(line: str, completed: str, zsh: Path) -> None:
    """In a real zsh on a terminal, by its own completion system: the line that Tab makes of what was typed."""
    setup = "fpath=($PWD $fpath); autoload -U compinit; compinit -u; rm -f typed"
    widget = "keep() { print -r -- $BUFFER >part; mv part typed }; zle -N keep; bindkey ^O keep; print rea''dy"
    with Terminal(("zsh", "-f", "-i"), HOME=str(zsh)) as terminal:
        terminal.press(f"cd {zsh}; {setup}\n{widget}\n".encode())
        terminal.wait_for("ready\n")
        terminal.press(f"{line}\t\x0f".encode())
        wait_until((zsh / "typed").exists)
        assert (zsh / "typed").read_text().removesuffix("\n").startswith(completed)


@pytest.mark.parametrize("module", ["jobs.pretrain", "data_prep.shard", "jobs.vit"])
def test_outside_the_virtual_environment_a_line_names_the_way_into_it(module: str) -> None:
    """-S -E: a python without any installed package."""
    done = subprocess.run(
        [sys.executable, "-SE", "-m", module, "tiny"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the package '")
    assert done.stderr.count("\n") == 1
    assert f"{Path('.venv/bin/python')}" in done.stderr


def test_a_module_of_ours_that_is_missing_keeps_its_traceback(tmp_path: Path) -> None:
    """That is a fault of the code, which its author must see."""
    for package in ("jobs", "pipeline"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pipeline" / "core" / "results.py").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.pretrain", "tiny"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" in done.stderr
