"""--json and --csv, as in every command: a file to write, or - for the standard output."""

import sys
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import write_text

STDOUT = "-"


def check(path: str, option: str) -> None:
    """Raise UserError, before any work, if the file can't be written."""
    if path in ("", STDOUT):
        return
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise UserError(
            f"{option} {path!r} can't be written: name a file in a folder that exists, or {STDOUT} for the standard "
            "output"
        )


def write(path: str, text: str) -> None:
    """Print ``text`` for -, else write it to the file, atomically."""
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        write_text(Path(path), text)
