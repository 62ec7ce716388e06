"""What every command shares: one-line errors, exit codes and the tyro parser.

Imports neither torch nor DeepSpeed, so that ``--help`` is fast.
"""

import contextlib
import dataclasses
import errno
import io
import json
import locale
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro import _arguments, _strings

from pipeline.core import arguments, log, results, usage_errors
from pipeline.core.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USER, UserError
from pipeline.core.needs import Need
from pipeline.core.terminal import escape_output
from pipeline.core.version import VERSION

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

TURN = 2.0  # seconds within which a launcher notices that a rank has exited; torchrun polls ten times per second
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_USERS = _FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


def run(main: Callable[[], int | None]) -> None:
    """Call ``main`` and exit with its exit code. A :class:`UserError` becomes one line on stderr and exit code 2.

    So do file-system errors that only the user can fix: permissions, a full disk, a file in place of a folder.
    """
    _restart_in_utf8()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed (>&-), which Python and its libraries can't handle
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    try:
        Path.home()
    except RuntimeError:  # a container user without a line in /etc/passwd: HOME as container engines set it
        os.environ["HOME"] = "/"
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that isn't UTF-8 can't show table borders
    escape_output()
    os.environ.setdefault("PYTHON_COLORS", "0")  # else the colour codes of Python 3.13's tracebacks would be escaped
    try:
        log.set_up()
        code = main()
    except UserError as error:
        _wait_for_turn()
        message = as_called(str(error))
        logger.error("%s", message)
        _tell_torchrun(" ".join(message.split()))
        code = EXIT_USER
    except BrokenPipeError:  # the reader of our output (head, less) has exited
        code = EXIT_DONE
    except SystemExit as error:  # raised by --help, or by rich if the reader has exited
        code = EXIT_DONE if isinstance(error.__context__, BrokenPipeError) else error.code  # type: ignore[assignment]
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process even during cleanup
        if _turn(os.environ) == 0:
            print("interrupted; run the same command again", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except OSError as error:
        from pipeline.core.retry import TRANSIENT

        name = error.filename2 or error.filename  # a link or rename has two names: take the target
        if error.errno not in _USERS | TRANSIENT or (name is None and error.errno not in _FULL):
            raise
        where = "" if name is None else f"{str(name)!r}: "
        remedy = ": a disk or file server error; try again" if error.errno in TRANSIENT else ""
        _wait_for_turn()
        logger.error("%s%s%s", where, error.strerror, remedy)
        _tell_torchrun(f"{where}{error.strerror}{remedy}")
        code = EXIT_USER
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would flush again and exit with 120
        if not isinstance(error, BrokenPipeError):
            logger.error("the standard output: %s", error.strerror)
            code = EXIT_USER
    if code == EXIT_USER and (mark := os.environ.get("REFUSED_MARK")):  # for slurm/launch.sh: accelerate exits with 1
        with contextlib.suppress(OSError):
            Path(mark).touch()
    sys.exit(code or EXIT_DONE)


def _restart_in_utf8() -> None:
    """Restart the interpreter in UTF-8 mode (PEP 540) if the locale has another encoding: once, in this process.

    Otherwise names of files and classes would depend on the locale, which Python and libraries use to decode them.
    """
    if sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8"):
        return
    if os.environ.get("PYTHONUTF8") != "1":  # =1 here means that Python was told to ignore it
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _turn(environment: Mapping[str, str]) -> float:
    """Seconds that a rank waits before it reports a startup error, since most are the same on every rank.

    Rank 0 reports at once, then each node's first rank, then the others. By then the launcher has seen rank 0 exit and
    ends the others, so that the error appears once. 0 for a process without a launcher.
    """
    for rank, local_rank in (("RANK", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_LOCALID")):
        if rank in environment:
            return 0.0 if environment[rank] == "0" else TURN if environment.get(local_rank) == "0" else 2 * TURN
    return 0.0


def _wait_for_turn() -> None:
    if seconds := _turn(os.environ):
        for number in (signal.SIGTERM, signal.SIGINT):  # from the launcher: exit quietly
            signal.signal(number, signal.SIG_DFL)
        time.sleep(seconds)


def _tell_torchrun(message: str) -> None:
    """Make torchrun's failure report, which comes last and can't be turned off, end with our error.

    File and format: torch.distributed.elastic.multiprocessing.errors.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        facts = {"message": f"error: {message}", "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": facts}), "utf-8")


_programs: dict[str, str] = {}  # "python -m MODULE" -> "vit NAME", while the vit command runs


@contextlib.contextmanager
def calling(names: Mapping[str, str]) -> Iterator[None]:
    """Make --help and messages name commands as the user called them: "vit shard" for "python -m data_prep.shard"."""
    _programs.update(names)
    try:
        yield
    finally:
        _programs.clear()


def as_called(text: str) -> str:
    """``text`` with commands named as the user called them."""
    names = r"(?:python -m |(?<!-m )\b)((?:jobs|data_prep)\.\w+)"  # not the -m of torchrun and accelerate
    return re.sub(names, lambda found: _programs.get(f"python -m {found[1]}", found[0]), text)


_tyros = _strings.remove_single_line_breaks


def _unwrapped(helptext: str) -> str:
    """A field's docstring in one line, since tyro would break it where its source lines, which are indented, break."""
    if all(line.startswith("    ") for line in helptext.split("\n")[1:]):
        helptext = re.sub(r"\s*\n\s*", " ", helptext)
    return as_called(_tyros(helptext))


_strings.remove_single_line_breaks = _unwrapped


def _helptext(argument: Any, *others: Any, **named: Any) -> Any:
    """A field's help, without tyro's "(default: None)" after a text that states the default, or "(default: )"."""
    field = argument.field
    text = field.helptext() if callable(field.helptext) else field.helptext
    several = argument.is_positional() and argument.lowered.nargs == "*"
    hint = field.argconf.help_behavior_hint
    if several and field.default != ():
        hint = "(required)"
    elif field.default in (None, "", (), {}) and (several or "Default: " in str(text)):
        hint = ""
    elif field.default in (None, (), {}):
        hint = "(default: none)"
    field.argconf = dataclasses.replace(field.argconf, help_behavior_hint=hint)
    return _tyros_helptext(argument, *others, **named)


_tyros_helptext = _arguments.generate_argument_helptext
_arguments.generate_argument_helptext = _helptext  # type: ignore[assignment]


def parse(
    config: Callable[..., Config],
    *,
    prog: str,
    description: str,
    args: Sequence[str] | None = None,
    default: Config | None = None,
    flags: bool = True,
    needs: Mapping[str, Need] | None = None,
) -> Config:
    """Parse the command line (``sys.argv`` unless ``args`` is given) into ``config``, a dataclass.

    ``description`` ends with examples, shown by ``--help``. Without ``flags``, --help shows switches with a value
    (``--data.flip False``) instead of ``--data.no-flip``; either is taken. ``needs``: by field, the condition under
    which the option has an effect. Raises UserError for bad usage and for an option without effect.
    """
    prog, description = as_called(prog), as_called(description)
    options: dict[str, Any] = {} if default is None else {"default": default}
    if not flags:
        options["config"] = (tyro.conf.FlagConversionOff,)

    given = without_local_rank(sys.argv[1:] if args is None else args)
    kind = type(default) if default is not None else config
    words = arguments.normalised(given, kind, flags=flags)
    names = [name for name, _ in arguments.fields_of(kind)]
    usage_errors.check_groups(words, names)

    def call() -> Config:
        return tyro.cli(  # type: ignore[no-any-return]
            config, prog=prog, description=description, args=words, **options
        )

    parsed = _one_line_errors(call, prog, words, names)
    for name in arguments.OUTPUTS:
        if isinstance(path := getattr(parsed, name, None), str):
            results.check(path, f"--{name}")
    typed = arguments.given_names(words)
    for name, need in (needs or {}).items():
        value = getattr(parsed, name)
        if name in typed and value is not False and value != "":  # these two ask for nothing
            need.check(f"--{name.replace('_', '-')}", value, parsed)
    return parsed


def without_local_rank(args: Sequence[str]) -> list[str]:
    """The arguments without the ``--local_rank=N`` that the deepspeed launcher adds; LOCAL_RANK has the same number.

    Prints the version and exits if --version is among them.
    """
    if "--version" in args:
        print(f"vit-pipeline {VERSION}")
        sys.exit(EXIT_DONE)
    local_rank = os.environ.get("LOCAL_RANK")
    given = local_rank is not None and args and args[0] in (f"--local_rank={local_rank}", f"--local-rank={local_rank}")
    return list(args[1:] if given else args)


def _one_line_errors(parse: Callable[[], Config], prog: str, words: Sequence[str], names: Sequence[str]) -> Config:
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return parse()
    except SystemExit as error:
        if error.code == EXIT_USER:
            said = usage_errors.one_line(captured.getvalue(), words, names)
            raise UserError(f"{said} (see {prog} --help)") from None
        sys.stderr.write(captured.getvalue())
        raise
