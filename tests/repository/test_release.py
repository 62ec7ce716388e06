"""The wheel, installed in a clean environment away from the source: every command answers."""

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.soak
def test_the_wheel_installs_and_every_command_answers() -> None:
    """--offline takes the dependencies from .venv; `make release` downloads them."""
    done = subprocess.run(
        ["bash", ".ci/release", "--offline"], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installed in a clean environment" in done.stdout
