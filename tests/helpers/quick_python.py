"""A ``python`` that starts at once: each process is a fork of one that has imported torch, DeepSpeed and MLflow.

:func:`executable` is a program that takes ``-m MODULE ARGUMENTS`` as python does, and hands directory, environment,
standard streams and signals on to such a fork; what the program starts by ``sys.executable`` is quick, too. Everything
else (``-c``, a script) is run by the real python. What a fork can't show is the start of the interpreter itself:
tests/e2e/test_training.py starts some whole commands.
"""

import array
import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import stat
import sys
import tempfile
import threading
import traceback
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.tracking.client import quiet_environment
from tests.helpers.ranks import forked

PRELOADED = ("mlflow.store.tracking.sqlalchemy_store", "pipeline.compare.plots")  # three seconds, in many programs
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
CLIENT = """#!{python} -SE
import array, json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
words = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n"
server.sendmsg([words[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(words[1:])
for number in {forwarded}:
    signal.signal(number, lambda number, _: server.sendall(bytes([number])))
for number in (0, 1):
    os.close(number)  # whoever waits for their end waits for the program's
code = int(server.makefile().readline() or 137)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@cache
def executable() -> Path:
    """The program, its server running until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="quick-"))
    program, address = folder / "python", str(folder / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    program.write_text(
        CLIENT.format(python=sys.executable, address=address, forwarded=tuple(int(number) for number in FORWARDED))
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    process = forked(_serve, (listener, program, os.getpid()))
    process.start()
    listener.close()
    atexit.register(process.kill)  # before multiprocessing would wait for it
    return program


def _serve(listener: socket.socket, program: Path, owner: int) -> None:
    """One process a program, which waits for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener.settimeout(1.0)
    quiet_environment()  # as before each import of mlflow
    for module in PRELOADED:
        importlib.import_module(module)
    while os.path.exists(f"/proc/{owner}"):  # noqa: PTH110
        with suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(connection, program)
            connection.close()


def _attend(connection: socket.socket, program: Path) -> None:
    """Start what the client asks for, pass its signals on, and tell the exit code; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background process, which pytest may be, has none
    connection.setblocking(True)
    words, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i", ancillary[0][2])
    while not words.endswith(b"\n"):
        words += connection.recv(1 << 16)
    arguments, folder, environment = json.loads(words)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _run(arguments, program)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    while True:
        ready, _, _ = select.select([connection.fileno(), ended], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(OSError):
                connection.sendall(f"{code}\n".encode())
            os._exit(0)
        numbers = connection.recv(16)
        for number in numbers or [signal.SIGKILL]:  # a client that was killed takes its program with it
            os.kill(pid, number)
        if not numbers:
            os.waitpid(pid, 0)
            os._exit(0)


def _run(arguments: list[str], program: Path) -> None:
    """Become ``python ARGUMENTS``; never returns."""
    options = arguments[: arguments.index("-m")] if "-m" in arguments else arguments
    if "-m" not in arguments or not set(options) <= {"-u"}:
        os.execv(sys.executable, [sys.executable, *arguments])
    module, *rest = arguments[len(options) + 1 :]
    sys.orig_argv = [sys.executable, *arguments]
    sys.executable = str(program)
    sys.argv = [module, *rest]
    sys.path[0] = os.getcwd()  # noqa: PTH109
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(0, "r"),
        os.fdopen(1, "w", buffering=1 if os.isatty(1) or options else -1),
        os.fdopen(2, "w", buffering=1),
    )
    warnings.simplefilter("default")
    warnings.simplefilter("ignore", FutureWarning)
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1 if isinstance(code, str) else int(code or 0))  # type: ignore[call-overload]
