"""The wheel holds every package and every file that the code reads: a forgotten one breaks only installed copies."""

import fnmatch
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from pipeline.core.version import VERSION

REPOSITORY = Path(__file__).parents[2]
TOP = ("pipeline", "data_prep", "jobs")
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
# what the wheel needn't hold: sources of extensions, which it holds compiled
COMPILED = (".c",)
NAMED = (  # so that the rule below can't pass by an empty tree
    "pipeline/py.typed",
    "pipeline/imaging/_huffman.h",
    "pipeline/imaging/_libjpeg_errors.h",
    "pipeline/compare/page.css",
    "pipeline/compare/page.js",
    "pipeline/compare/uplot/uPlot.iife.min.js",
    "pipeline/dataset/classes.tsv",
)


def tracked() -> list[str]:
    """Files of the packages under version control, or on the disk where there is no git."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *TOP],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return [name for name in done.stdout.splitlines() if (REPOSITORY / name).is_file()]
    found = (path for top in TOP for path in (REPOSITORY / top).rglob("*") if path.is_file())
    return [str(path.relative_to(REPOSITORY)) for path in found if path.suffix not in (".so", ".pyc")]


def packages() -> set[str]:
    return set(find_packages(str(REPOSITORY), include=SETTINGS["packages"]["find"]["include"]))


def is_in_wheel(name: str) -> bool:
    """Whether setuptools packs a file: as a module of a package, or as package data."""
    path, found = Path(name), packages()
    if path.suffix == ".py":
        return ".".join(path.parent.parts) in found
    owner = path.parent
    while ".".join(owner.parts) not in found:
        owner = owner.parent
    patterns = [*SETTINGS["package-data"].get(".".join(owner.parts), []), *SETTINGS["package-data"].get("*", [])]
    return any(fnmatch.fnmatch(str(path.relative_to(owner)), pattern) for pattern in patterns)


def test_every_folder_with_code_is_packed() -> None:
    folders = {".".join(Path(name).parent.parts) for name in tracked() if name.endswith(".py")}
    assert folders == packages()


def test_every_file_that_is_no_extension_source_is_in_the_wheel() -> None:
    names = tracked()
    assert set(NAMED) <= set(names)
    missing = [name for name in names if not name.endswith(COMPILED) and not is_in_wheel(name)]
    assert not missing, "name them in [tool.setuptools.package-data] of pyproject.toml"


@pytest.mark.parametrize("name", NAMED)
def test_each_of_these_is_in_the_wheel(name: str) -> None:
    assert (REPOSITORY / name).is_file()
    assert is_in_wheel(name)


def test_extensions_name_the_headers_that_they_include() -> None:
    """setup.py's depends put them into the source distribution, and build anew when they change."""
    setup = (REPOSITORY / "setup.py").read_text()
    for source in [path for top in TOP for path in (REPOSITORY / top).rglob("*.c")]:
        assert f'"{source.relative_to(REPOSITORY)}"' in setup
        for line in source.read_text().splitlines():
            if line.startswith('#include "'):
                header = (source.parent / line.split('"')[1]).resolve().relative_to(REPOSITORY)
                assert f'"{header}"' in setup, f"{source.name} includes {header}"
                assert is_in_wheel(str(header))


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )[0]
    assert newest == VERSION
    assert f"\nversion: {newest}\n" in (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert SETTINGS["dynamic"]["version"] == {"attr": "pipeline.core.version.VERSION"}
