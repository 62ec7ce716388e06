"""Whatever a user's shell exports, commands do and write the same: real interpreters, on classes with other letters."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
LETTERS = ("Äpfel", "猫", "plain")  # folders of classes
SHELL = {
    "CDPATH": "/:/tmp", "GREP_OPTIONS": "--color=always -v", "LS_COLORS": "di=1;31", "POSIXLY_CORRECT": "1",
    "GLOBIGNORE": "*", "IFS": "/", "TAPE": "/dev/st0", "TAR_OPTIONS": "--null", "GZIP": "-1", "COLUMNS": "20",
    "FORCE_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "TZ": "Asia/Kolkata",
}  # fmt: skip
ENVIRONMENTS = {
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX locale": {"LANG": "POSIX", "LC_CTYPE": "POSIX", "PYTHONIOENCODING": "latin-1"},
    "optimised": {"PYTHONOPTIMIZE": "2"},
    "safe path": {"PYTHONSAFEPATH": "1"},
    "shell": SHELL,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "photos"
    for name in LETTERS:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels_HWC = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels_HWC).save(folder / name / f"{name}-{number}.jpg")
    return folder


def commands(images: Path, out: Path, environment: dict[str, str]) -> tuple[dict[str, str], str]:
    """Shard and check; digests of the files, and what was printed."""
    shown = ""
    for words in (
        ("data_prep.shard", images, out, "--val-fraction", 0.25, "--workers", 1, "--split", "train"),
        ("data_prep.verify", out, "--workers", 1),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)], cwd=out.parent, encoding="utf-8", errors="surrogateescape",
            env={name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
            | {"PYTHONPATH": str(REPOSITORY), **environment},
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown += done.stdout + done.stderr
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir() if path.is_file()}
    return files, shown


@pytest.fixture(scope="module")
def usual(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return commands(images, tmp_path_factory.mktemp("usual") / "out", {"LC_ALL": "C.UTF-8"})[0]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_dataset_is_the_same(name: str, images: Path, usual: dict[str, str], tmp_path: Path) -> None:
    startup = tmp_path / "startup.sh"
    startup.write_text("echo from BASH_ENV; exit 3\n", encoding="utf-8")
    shell = {"BASH_ENV": str(startup), "ENV": str(startup)} if name == "shell" else {}
    files, _ = commands(images, tmp_path / "out", ENVIRONMENTS[name] | shell)
    assert files == usual
