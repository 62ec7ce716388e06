"""One-line errors before a command's own code runs: Ctrl-C during imports, or a package that is not installed.

Imports only the standard library, and is imported before everything else.
"""

import os
import sys
from pathlib import Path
from types import TracebackType

EXIT_USER, EXIT_INTERRUPTED = 2, 130  # copies from pipeline.core.errors, as nothing may be imported here
OURS = ("pipeline", "jobs", "data_prep")


def report_in_one_line() -> None:
    """Replace the traceback of these two errors by one line, if a command is being started (not imported)."""
    if sys.argv[:1] == ["-m"] or (sys.argv and Path(sys.argv[0]).name == "vit"):  # set by runpy at first
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        if os.environ.get("RANK", "0") == "0":  # the first of several processes speaks for all
            sys.stderr.write("interrupted\n")
            sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)  # the interpreter's own code would be 1
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not name or name in OURS:
        sys.__excepthook__(kind, error, trace)
        return
    root = Path(__file__).parents[2]
    python = root / ".venv" / "bin" / "python"
    remedy = f"use {python}" if python.exists() else f"run make in {root}, then use {python}"
    if not (root / "Makefile").exists():
        remedy = "pip install vit-pipeline into it"
    sys.stderr.write(f"error: the package {name!r} is not installed for {sys.executable}: {remedy}\n")
    sys.exit(EXIT_USER)
