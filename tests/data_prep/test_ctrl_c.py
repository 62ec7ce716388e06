"""Ctrl-C in data_prep's commands on a real terminal: one line, finished shards stay, the same command resumes."""

import sys
from pathlib import Path

import pytest

from pipeline.dataset import format as dataset_format
from tests.helpers.jpegs import encode
from tests.helpers.terminal import CTRL_C, Terminal

IMAGES = 300


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class of many links to a large image: seconds of work."""
    folder = tmp_path_factory.mktemp("photos") / "in"
    (folder / "cat").mkdir(parents=True)
    first = folder / "cat" / "0.jpg"
    first.write_bytes(encode(1200, 1600))
    for number in range(1, IMAGES):
        (folder / "cat" / f"{number}.jpg").hardlink_to(first)
    return folder


def test_ctrl_c_keeps_finished_shards(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--samples-per-shard", 10, "--workers", 1)
    command = (sys.executable, "-m", "data_prep.shard", photos, out, *options)
    with Terminal(command) as terminal:
        terminal.wait_for("writing")
        while not list((out / ".work" / "done").glob("*-00001.arrow")):
            terminal.read_more()
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        assert "stopped; finished shards are kept: run the same command to resume" in terminal.text
        assert "Traceback" not in terminal.text
    done = [path.stem for path in (out / ".work" / "done").glob("train-?????.arrow")]
    kept = {f"{name}.tar": (out / f"{name}.tar").stat().st_mtime_ns for name in done}
    assert 0 < len(kept) < IMAGES / 10
    with Terminal(command) as terminal:
        assert terminal.wait() == 0, terminal.text
    assert dataset_format.read_info(out).samples == {"train": IMAGES}
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}


def test_a_second_ctrl_c_leaves_at_once(photos: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "data_prep.shard", photos, tmp_path / "out", "--workers", 1)
    with Terminal(command) as terminal:
        terminal.wait_for("writing")
        for _ in range(3):
            terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        assert "Traceback" not in terminal.text


def test_ctrl_c_in_index_leaves_the_folder_as_it_was(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(2000):
        (folder / f"train-{number:04d}.tar").hardlink_to(digits / "train-00000.tar")
    before = sorted(path.name for path in folder.iterdir())
    with Terminal((sys.executable, "-m", "data_prep.index", folder, "--workers", 1)) as terminal:
        terminal.wait_for("/2,000 tars")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        assert terminal.text.count("interrupted; run the same command again") == 1
        assert "Traceback" not in terminal.text
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("module", ["verify", "overlap", "report"])
def test_ctrl_c_in_the_other_commands_is_one_line(module: str, digits: Path, tmp_path: Path) -> None:
    more = {"overlap": ("--against", digits, "--out", tmp_path / "o.tsv"), "report": ("--out", tmp_path / "r.html")}
    command = (sys.executable, "-X", "importtime", "-m", f"data_prep.{module}", digits, *more.get(module, ()))
    with Terminal(command) as terminal:
        terminal.wait_for(" pyarrow.lib\n")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130, terminal.text
        lines = terminal.text.replace("^C", "").split("\n")
        said = [line for line in lines if line.strip() and not line.startswith("import time:")]
        assert len(said) == 1, said
        assert said[0].startswith("interrupted")
    assert not list(tmp_path.iterdir())
