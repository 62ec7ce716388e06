"""Concepts that one file owns: nobody else writes them again."""

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# the saver renames a checkpoint's folder when all ranks have written their share
RENAMING = {"pipeline/core/files.py", "pipeline/checkpoint/saver.py"}
LOCKING = {"pipeline/core/locks.py"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for top in ("pipeline", "data_prep", "jobs"):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            yield str(path.relative_to(REPOSITORY)), ast.parse(path.read_text())


def renames(node: ast.AST) -> bool:
    """``os.replace``, ``Path.replace`` (one argument: str's has two), ``rename``, ``shutil.move``, ``mkstemp``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
    if node.func.attr == "replace":
        return owner == "os" or (len(node.args) == 1 and not node.keywords and owner != "dataclasses")
    moves = {("shutil", "move"), ("tempfile", "mkstemp"), ("tempfile", "NamedTemporaryFile")}
    return node.func.attr in ("rename", "renames") or (owner, node.func.attr) in moves


def test_files_are_written_aside_and_renamed_in_one_place() -> None:
    found = {name for name, tree in sources() if any(renames(node) for node in ast.walk(tree))}
    assert found <= RENAMING, "use appearing(), or temporary() and put_in_place(), of pipeline/core/files.py"
    assert "pipeline/core/files.py" in found


def test_these_would_be_found() -> None:
    for line in ("aside.replace(path)", "os.replace(a, b)", "aside.rename(path)", "tempfile.mkstemp(dir=x)"):
        assert any(renames(node) for node in ast.walk(ast.parse(line))), line
    for line in ("text.replace('a', 'b')", "dataclasses.replace(meta, files=files)", "now.replace(tzinfo=None)"):
        assert not any(renames(node) for node in ast.walk(ast.parse(line))), line


def test_locks_have_one_owner() -> None:
    importing = {
        name
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and any(item.name == "fcntl" for item in node.names)
    }
    assert importing == LOCKING


def test_progress_bars_have_one_owner() -> None:
    assert {name for name, tree in sources() if "rich.progress" in imported(tree)} == {"pipeline/core/progress.py"}


def imported(tree: ast.Module) -> set[str]:
    """Names of the modules that are imported, the names that are taken from them among them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{item.name}" for item in node.names)}
    return names


def test_imports_are_found_in_every_form() -> None:
    for line in ("import rich.progress", "from rich.progress import Progress", "from rich import progress"):
        assert "rich.progress" in imported(ast.parse(line)), line
