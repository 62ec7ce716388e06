"""What came with the data never steers a terminal, forges a line of a log, runs in a spreadsheet or in a page."""

import csv
import importlib
import io
import json
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from rich.progress import Progress
from rich.table import Table

from data_prep import index, overlap, report, shard, verify
from jobs.vit import COMMANDS
from pipeline.config.schema import ModelConfig
from pipeline.core import cli, terminal
from pipeline.core.errors import printable
from pipeline.core.terminal import Escaping, csv_cell, visible
from pipeline.evaluation.confusion import write
from pipeline.inference.predictions import Answer, Files
from pipeline.interop.trained_model import Named

EVIL = "\x1b[31m\x1b]0;owned\x07\x9b2J\x7f\r\u202e"  # colour, title, bell, C1's way to clear the screen, overwriting
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process, as its users start it: its exit code, and all that it has printed."""

    def call(module: str, *args: object) -> tuple[int, str]:
        main = importlib.import_module(module).main
        monkeypatch.setattr(sys, "argv", [module, *map(str, args)])
        stdout, stderr = sys.stdout, sys.stderr
        try:
            with pytest.raises(SystemExit) as left:
                cli.run(main)
        finally:
            sys.stdout, sys.stderr = stdout, stderr
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return call


def test_visible_text_is_what_json_reads_and_steers_nothing() -> None:
    assert visible("a\tb\nc é 日本 🐱") == "a\tb\nc é 日本 🐱"
    shown = visible(EVIL + "\u2028\udc80")
    assert shown.startswith("\\u001b[31m")
    assert not RAW.search(shown)
    assert json.loads(f'"{shown}"') == EVIL + "\u2028\udc80"


def test_names_are_stored_without_control_characters() -> None:
    assert printable("n1/a b é.jpg") == "n1/a b é.jpg"
    assert printable("a\nb\x1b\udcff\x9b") == "a%0Ab%1B%FF%C2%9B"


def test_streams_escape_and_stay_streams() -> None:
    raw = io.StringIO()
    stream = Escaping(raw)
    print(f"a{EVIL}", file=stream)
    stream.writelines(["b\x1b", "c"])
    stream.flush()
    assert not RAW.search(raw.getvalue())
    assert raw.getvalue().endswith("\nb\\u001bc")
    assert stream.isatty() is False


def test_tables_and_bars_keep_their_own_colours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    raw = Terminal()
    monkeypatch.setattr(sys, "stdout", Escaping(raw))  # type: ignore[arg-type]
    monkeypatch.setenv("TERM", "xterm")
    console = terminal.console(width=200)
    table = Table("name", header_style="bold")
    table.add_row(EVIL)
    console.print(table)
    with Progress(console=console) as progress:
        progress.add_task(f"task {EVIL}", total=1)
    shown = raw.getvalue()
    assert "\\u001b[31m" in shown
    assert "\x1b[1m" in shown  # the header's
    assert "\x1b[31m" not in shown
    assert not re.search("[\x07\x9b\x7f\u202e]", shown)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_escapes_what_it_complains_about(command: str, run: Run, tmp_path: Path) -> None:
    name = f"gone{EVIL}\u2028"
    given = {"plan": (name,), "pretrain": (name,), "doctor": ("--fs", tmp_path / name, "--no-such-option", name)}
    args = given.get(command, (tmp_path / name, tmp_path / f"too{EVIL}"))
    code, said = run(COMMANDS[command][0], *args)
    assert code in (1, 2), said
    assert not RAW.search(said), said
    assert any(escaped in said for escaped in ("\\u001b", "\\x1b", "%1B")), said


@pytest.fixture(scope="module")
def evil_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders and images whose names are escapes, formulas and markup."""
    folder = tmp_path_factory.mktemp("evil") / "in"
    random = np.random.default_rng(0)
    for name in (f"cat{EVIL}", "=cmd|' '!A1", "<img src=x onerror=alert(1)>".replace("/", "")):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            data = simplejpeg.encode_jpeg(random.integers(0, 256, (40, 40, 3), np.uint8))
            (folder / name / f"={number}{EVIL}<b>.jpg").write_bytes(data)
        (folder / name / f"bad{EVIL}.jpg").write_bytes(b"\xff\xd8\xff" + EVIL.encode())
    return folder


def test_a_dataset_of_evil_names(evil_folder: Path, run: Run, tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "page.html"
    again, pairs = tmp_path / "again", tmp_path / "pairs.txt"
    everything = ""
    for module, args in (
        ("data_prep.shard", (evil_folder, out, "--workers", 1, "--val-fraction", 0.3)),
        ("data_prep.shard", (evil_folder, again, "--workers", 1, "--json", "--seed", 1)),
        ("data_prep.verify", (out, "--workers", 1)),
        ("data_prep.report", (out, "--out", page)),
        ("data_prep.overlap", (out, "--against", again, "--out", pairs, "--workers", 1)),
    ):
        code, said = run(module, *args)
        assert code == 0, said
        everything += said
    assert not RAW.search(everything)
    text = page.read_text()
    assert not RAW.search(text)
    assert "<img src=x" not in text
    assert "<b>.jpg" not in text
    assert {shard, index, verify, report, overlap}  # imported here, so that a renamed one fails at collection


def test_predictions_of_evil_names(evil_folder: Path, tmp_path: Path, run: Run) -> None:
    from tests.helpers.runs import make_run

    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for path in sorted(evil_folder.rglob("*.jpg")):
            tar.add(path, f"x{EVIL}/{path.name}")
    table = tmp_path / "out.csv"
    code, said = run(
        "jobs.predict", tmp_path / "run", tmp_path / "evil.tar", evil_folder, "--csv", table, "--workers", 0
    )
    assert code == 0, said
    assert "is skipped" in said
    assert not RAW.search(said)
    assert not RAW.search(table.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1", "'＝1"),
        ("-0.5", "-0.5"),
        ("+3e-4", "+3e-4"),
        ("cat", "cat"),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_a_spreadsheet_runs_no_cell(value: object, written: object) -> None:
    assert csv_cell(value) == written


def test_csv_files_hold_no_formulas(tmp_path: Path) -> None:
    classes = [Named("=n1", "@evil"), Named("n2", "-1")]
    with Files(str(tmp_path / "a.csv"), None, classes, 1) as files:
        files.add([Answer("+x.jpg", (0,), (0.5,)), Answer("y.jpg", (1,), (0.25,)), Answer("=z", error="=e")])
    write(tmp_path, np.eye(2), [{"wnid": "=n1", "name": "@evil"}, {"wnid": "n2", "name": "-1"}])
    for name in ("a.csv", "per_class.csv"):
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert "'=n1" in cells
        assert "'@evil" in cells
        assert "-1" in cells
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
