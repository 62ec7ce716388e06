"""Each package says what belongs in it; module names that stand in strings are there."""

import ast
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

from pipeline.core import source
from pipeline.preflight import measurements

REPOSITORY = Path(__file__).parents[2]
TOP = ("pipeline", "data_prep", "jobs")
PACKAGES = sorted(file.parent for top in TOP for file in (REPOSITORY / top).rglob("__init__.py"))
MODULE = re.compile(r"(?:pipeline|data_prep|jobs)(?:\.[a-z_]+)+")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_package_says_what_belongs_in_it_and_which_file_to_read_first(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert text, f"{package} has no docstring"
    named = re.findall(r"[\w/]+\.py", " ".join(text[text.index("Read ") :].split()))
    assert named, f"{package} names no file to read first"
    for name in named:
        assert (package / name).exists() or (REPOSITORY / name).exists(), f"{package} names {name}, which is not there"


def test_every_folder_with_code_is_a_package() -> None:
    folders = {file.parent for top in TOP for file in (REPOSITORY / top).rglob("*.py")}
    assert folders == set(PACKAGES)


def test_module_names_in_strings_can_be_imported() -> None:
    """Of ``-m`` commands, preloaded modules and patched names: a move breaks them without a word."""
    found = set()
    for file in [path for top in (*TOP, "tests", "benchmarks") for path in (REPOSITORY / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
                found.add(node.value)
    assert {"pipeline.tracking.sync", "data_prep.writing.build_shard"} <= found
    made_up = {"pipeline.core.test", "pipeline.svg"}  # a logger of a test, and a figure's file
    assert not sorted(name for name in found - made_up if not _is_there(name))


def _is_there(name: str) -> bool:
    """A module, which need not be imported for that, or something in one."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        pass
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_digest_of_the_code_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (source.SOURCE / "jobs" / "doctor.py").is_file()
    assert (source.PACKAGE / "core" / "source.py").is_file()
    file = tmp_path / "pipeline" / "core" / "x.py"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(measurements, "SOURCE", tmp_path)
    digests = set()
    for text in ("a = 1\n", "a = 2\n"):
        file.write_text(text)
        digests.add(measurements.code_digest())
    assert len(digests) == 2
    monkeypatch.undo()
    assert measurements.code_digest() not in digests
