"""Text is written and read as UTF-8 wherever we open a file or a pipe, whatever the locale says (PEP 597)."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = [
    path for name in ("pipeline", "jobs", "data_prep", "benchmarks") for path in (REPOSITORY / name).rglob("*.py")
]
# positions of mode and encoding among the arguments of what opens text unless the mode has a "b"
OPENERS = {"open": (1, 3), "fdopen": (1, 3), "NamedTemporaryFile": (0, 2), "TemporaryFile": (0, 2)}
NOT_FILES = {"os", "tarfile", "zipfile", "Image", "Pillow", "gzip", "self", "cache", "system", "retry"}


def without_encoding(source: str) -> list[int]:
    """Lines of calls that would open text in the locale's encoding."""
    return [call.lineno for call in ast.walk(ast.parse(source)) if isinstance(call, ast.Call) and _by_locale(call)]


def _by_locale(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    function, of = call.func, ""
    if isinstance(function, ast.Attribute):
        of = function.value.id if isinstance(function.value, ast.Name) else "?"
    name = getattr(function, "attr", getattr(function, "id", ""))
    if "encoding" in keywords:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")
    if name in ("run", "Popen", "check_output"):
        return "text" in keywords or "universal_newlines" in keywords
    if name not in OPENERS or (name == "open" and of in NOT_FILES):
        return False
    at, last = OPENERS[name]
    at, last = (at - 1, last - 1) if name == "open" and of else (at, last)  # Path.open
    mode = call.args[at] if len(call.args) > at else keywords.get("mode")
    binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
    binary_by_default = mode is None and name.endswith("TemporaryFile")
    return not (binary or binary_by_default or len(call.args) > last)


def test_no_text_depends_on_the_locale() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in SOURCES
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found, "give encoding='utf-8'"


@pytest.mark.parametrize("call", [
    "path.read_text()", "path.read_text(errors='replace')", "path.write_text(text)", "path.open()", "path.open('w')",
    "open(path)", "open(path, mode='a')", "os.fdopen(3, 'w')", "subprocess.run(words, text=True)",
    "tempfile.TemporaryFile('w+')", "(folder / 'a').open('w', newline='')",
])  # fmt: skip
def test_these_would_be_found(call: str) -> None:
    assert without_encoding(call) == [1]


@pytest.mark.parametrize("call", [
    "path.read_text('utf-8-sig')", "path.read_text(encoding='utf-8')", "path.write_text(text, 'utf-8')",
    "path.open('rb')", "open(path, 'wb')", "os.fdopen(3, 'rb')", "os.open(path, os.O_RDONLY)", "tarfile.open(path)",
    "subprocess.run(words, capture_output=True)", "tempfile.TemporaryFile()",
])  # fmt: skip
def test_these_would_not(call: str) -> None:
    assert without_encoding(call) == []
