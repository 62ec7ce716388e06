"""The tests' tree mirrors the packages', and tests share code through helpers only."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
A_TEST_FILE = re.compile(r"\btests(?:\.\w+)*(?:\.| import (?:\w+, )*)(?:test_\w+|conftest)\b")
# folders that mirror no package of pipeline/, and their subjects
OTHERS = {"data_prep", "slurm", "commands", "e2e", "peers", "repository", "helpers"}


def test_no_test_uses_another_test_file() -> None:
    """What two files use lives in tests/helpers or beside them; also in programs that a test writes as a string."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in [*TESTS.rglob("*.py"), *REPOSITORY.glob("benchmarks/*.py")]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path != Path(__file__) and (match := A_TEST_FILE.search(line)) and not match[0].endswith(f".{path.stem}")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "from tests.model.test_vit import random_model",
        "from tests.data_prep.conftest import WNIDS",
        "from tests.loader import batch_program, test_damage",
        "import tests.conftest",
        'command = ["-m", "tests.train.test_faults"]',
    ],
)
def test_these_lines_would_be_found(line: str) -> None:
    assert A_TEST_FILE.search(line)


def test_these_lines_would_not() -> None:
    for line in (
        "from tests.helpers.jobs import job",
        "from tests.data_prep import releases",
        "tests/model/test_vit.py",
    ):
        assert not A_TEST_FILE.search(line)


def test_each_folder_of_tests_has_a_subject_in_the_tree() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("pipeline/*/__init__.py")}
    folders = {path.parent.name for path in TESTS.glob("*/*.py")}
    assert folders <= packages | OTHERS
    assert not list(TESTS.glob("test_*.py")), "a test belongs into the folder of the package that it tests"
