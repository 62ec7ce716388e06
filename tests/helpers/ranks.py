"""Real ranks for tests: processes with torchrun's variables, a time limit, and none left behind.

Importing torch and DeepSpeed takes a rank some seconds, training a tiny model tenths of one. So one process a test
session imports them (multiprocessing's fork server), and each rank is a fork of it that runs ``python -m MODULE``'s
code. What a fork can't show is the start and the end of the interpreter itself: tests/e2e starts whole commands.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from pipeline.distributed.ranks import free_port

PRELOADED = ["tests.helpers.preloaded"]
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # saves two seconds of imports
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "VIT_MLFLOW": "off",
}


@dataclass(frozen=True)
class Finished:
    code: int  # negative: minus the signal that killed it
    output: str  # stdout and stderr together


class Ranks:
    """``world`` processes of ``python -m MODULE ...``; use as a context manager, which kills what still runs."""

    def __init__(self, world: int, arguments: Sequence[object], folder: Path, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        dash_m, module, *rest = map(str, arguments)
        assert dash_m == "-m"
        port = str(free_port())
        self.logs = [folder / f"rank{rank}.log" for rank in range(world)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            log.write_bytes(b"")
            process = _context().Process(target=_run, args=(module, rest, log, VARIABLES | variables | environment))
            process.start()
            self.processes.append(process)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # with its loader workers
            except ProcessLookupError:
                process.kill()
            process.join()

    def signal(self, rank: int, number: int) -> None:
        """Send one rank a signal."""
        os.kill(self.processes[rank].pid, number)

    def wait(self, timeout: float) -> list[Finished]:
        """Wait for all. Fails, with the ranks' output, where one takes longer than ``timeout`` seconds."""
        limit = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(limit - time.monotonic(), 0.01))
            assert process.exitcode is not None, f"a rank still runs after {timeout} s:\n{self.output()}"
        return [
            Finished(process.exitcode, log.read_text()) for process, log in zip(self.processes, self.logs, strict=True)
        ]

    def output(self) -> str:
        return "\n".join(f"--- rank {rank}\n{log.read_text()}" for rank, log in enumerate(self.logs))

    def wait_for(self, text: str, timeout: float, rank: int = 0) -> None:
        """Wait until ``rank`` has printed ``text``."""
        limit = time.monotonic() + timeout
        while text not in self.logs[rank].read_text():
            assert time.monotonic() < limit, f"{text!r} did not appear within {timeout} s:\n{self.output()}"
            assert self.processes[rank].exitcode is None, f"rank {rank} left before {text!r}:\n{self.output()}"
            time.sleep(0.02)


def run_ranks(
    world: int, arguments: Sequence[object], folder: Path, timeout: float = 120, code: int = 0, **environment: str
) -> list[Finished]:
    """Run ``world`` ranks to their end; each must leave with exit code ``code``."""
    with Ranks(world, arguments, folder, **environment) as ranks:
        finished = ranks.wait(timeout)
        assert all(rank.code == code for rank in finished), ranks.output()
        return finished


def forked(target: Callable[..., None], arguments: tuple[object, ...]) -> Any:
    """A process, not started yet, that runs ``target`` in a fork of the one with all imports."""
    return _context().Process(target=target, args=arguments)


def _context() -> Any:
    """The fork server's context, the server running with the ranks' environment."""
    context: Any = multiprocessing.get_context("forkserver")
    _stop_others_server()
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    os.environ.update(VARIABLES)
    try:
        forkserver.ensure_running()  # starts a new one where it has died
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


@cache
def _stop_others_server() -> None:
    """data_prep's workers come from the fork server too, and may have started one without our imports and variables."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _run(module: str, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """In the fork: become ``python -m MODULE ARGUMENTS`` with its output in ``log``."""
    os.setsid()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background process, which pytest may be, has none
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    warnings.simplefilter("default")
    warnings.simplefilter("ignore", FutureWarning)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # as an interpreter would; a fork leaves without
