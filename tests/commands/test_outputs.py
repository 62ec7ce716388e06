"""--json and --csv of real commands: a file beside the text, or - instead of it."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from data_prep import verify
from jobs import plan, predict
from pipeline.config.schema import ModelConfig
from tests.helpers.jpegs import encode
from tests.helpers.runs import make_run


def test_verify_writes_a_file_beside_its_text(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(digits), "--no-decode", "--workers", "1"]
    assert verify.main([*words, "--json", str(tmp_path / "out.json")]) == 0
    text = capsys.readouterr().out
    assert verify.main([*words, "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out.json").read_text()) == printed
    assert printed["findings"] == []
    assert "images" in text


def test_plan_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for words in ((), ("--json", str(tmp_path / "plan.json")), ("--json", "-"), ("--json",)):
        monkeypatch.setattr(sys, "argv", ["plan", "tiny", "--gpus-per-node", "1", *words])
        assert plan.main() == 0
        outputs.append(capsys.readouterr().out)
    table, beside, printed, bare = outputs
    assert table == beside
    assert json.loads(printed) == json.loads(bare) == json.loads((tmp_path / "plan.json").read_text())


def test_predict_prints_nothing_but_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    (tmp_path / "a.jpg").write_bytes(encode(40, 40))
    for output in ("-", str(tmp_path / "out.csv")):
        words = [tmp_path / "run", tmp_path / "a.jpg", "--csv", output, "--workers", 0, "--top", 2]
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
        assert predict.main() == 0
        said = capsys.readouterr().out
        (row,) = csv.DictReader(io.StringIO(said if output == "-" else (tmp_path / "out.csv").read_text()))
        assert row["image"] == str(tmp_path / "a.jpg")
        assert row["wnid_2"]
        assert ("probability" in said.split("\n")[0]) is True
    assert '{"model"' in said
