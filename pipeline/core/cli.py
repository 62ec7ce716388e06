"""What every command shares: one-line errors, exit codes and the tyro parser.

Imports neither torch nor DeepSpeed, so that ``--help`` answers at once.
"""

import contextlib
import errno
import io
import locale
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from pipeline.core import log
from pipeline.core.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USER, UserError
from pipeline.core.terminal import escape_output

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_USERS = _FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and leave with its exit code; a :class:`UserError` is one line on stderr and exit code 2.

    So is what only its user can put right of a file system: permissions, a full disk, a file for a folder.
    """
    _restart_in_utf8()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed (>&-), which Python and its libraries take badly, so nobody reads it
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    try:
        Path.home()
    except RuntimeError:  # a container's user that has no line in /etc/passwd: HOME as container engines set it
        os.environ["HOME"] = "/"
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that isn't UTF-8 lacks the letters of tables
    escape_output()
    os.environ.setdefault("PYTHON_COLORS", "0")  # Python 3.13's tracebacks, whose escapes would be escaped
    try:
        log.set_up()
        code = main()
    except UserError as error:
        logger.error("%s", error)
        code = EXIT_USER
    except BrokenPipeError:  # the reader of our output (head, less) has left
        code = EXIT_DONE
    except SystemExit as error:  # of --help, or rich's where the reader has left
        code = EXIT_DONE if isinstance(error.__context__, BrokenPipeError) else error.code  # type: ignore[assignment]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except OSError as error:
        from pipeline.core.retry import TRANSIENT

        name = error.filename2 or error.filename  # of two, of a link or a renaming, the one that is to be made
        if error.errno not in _USERS | TRANSIENT or (name is None and error.errno not in _FULL):
            raise
        where = "" if name is None else f"{str(name)!r}: "
        remedy = ": the disk or its server is in trouble; try again" if error.errno in TRANSIENT else ""
        logger.error("%s%s%s", where, error.strerror, remedy)
        code = EXIT_USER
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries again, and would leave with 120
        if not isinstance(error, BrokenPipeError):
            logger.error("the standard output: %s", error.strerror)
            code = EXIT_USER
    sys.exit(code or EXIT_DONE)


def _restart_in_utf8() -> None:
    """Start the interpreter anew in UTF-8 mode (PEP 540) if the locale has another encoding: once, in this process.

    Else names of files and classes would depend on the locale: Python decodes them by it, and so do libraries' files.
    """
    if sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8"):
        return
    if os.environ.get("PYTHONUTF8") != "1":  # else python was told to ignore it
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def parse(
    config: Callable[..., Config],
    *,
    prog: str,
    description: str,
    args: Sequence[str] | None = None,
    default: Config | None = None,
    flags: bool = True,
) -> Config:
    """Parse the command line (``sys.argv`` unless ``args`` is given) into ``config``, a dataclass.

    ``description`` ends with examples, shown by ``--help``. Without ``flags``, a bool takes a value as other fields do:
    ``--data.flip False`` instead of ``--data.no-flip``. Bad usage raises :class:`UserError` in one line.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    if not flags:
        options["config"] = (tyro.conf.FlagConversionOff,)

    args = without_local_rank(sys.argv[1:] if args is None else args)

    def call() -> Config:
        return tyro.cli(  # type: ignore[no-any-return]
            config, prog=prog, description=description, args=args, **options
        )

    return _one_line_errors(call, prog)


def without_local_rank(args: Sequence[str]) -> list[str]:
    """The arguments without the ``--local_rank=N`` that the deepspeed launcher puts first; LOCAL_RANK says it too."""
    local_rank = os.environ.get("LOCAL_RANK")
    given = local_rank is not None and args and args[0] in (f"--local_rank={local_rank}", f"--local-rank={local_rank}")
    return list(args[1:] if given else args)


def _one_line_errors(parse: Callable[[], Config], prog: str) -> Config:
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return parse()
    except SystemExit as error:
        if error.code == EXIT_USER:
            raise UserError(_unboxed(captured.getvalue()) + f" (see {prog} --help)") from None
        sys.stderr.write(captured.getvalue())
        raise


def _unboxed(text: str) -> str:
    """tyro's framed message as one line: ``Title: what is wrong. Perhaps you meant: --optim.lr FLOAT ...``"""
    lines = [line.strip("╭╮╰╯│─ \n") for line in text.splitlines()]
    lines = [line for line in lines if line.strip("-") and not line.startswith("For full helptext")]
    lines = [line for line in lines if not line.endswith(" --help")]  # where the option is documented
    if len(lines) > 1:
        title = lines.pop(0)
        lines[0] = lines[0] if lines[0].startswith(title) else f"{title}: {lines[0]}"
    return re.sub(r"\s+", " ", " ".join(lines)).strip()
