"""Run commands as children of this process, side by side: they get its signals and end before it."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from pipeline.core.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REQUEUE

# SIGTSTP: Ctrl-Z, after which fg continues all of them
PASSED_ON = (signal.SIGTSTP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
IN_ORDER = (EXIT_DONE, EXIT_REQUEUE, EXIT_INTERRUPTED)  # no reason to end the other children
LOOK_EVERY = 0.05  # seconds
GRACE = 30.0  # seconds from SIGTERM to SIGKILL for the other children after one has failed, as torchrun gives them


@dataclass(frozen=True)
class Ended:
    """How the children ended."""

    codes: tuple[int, ...]  # in the order of the commands; negative for a signal
    failed: int | None  # place of the child that failed first

    @property
    def code(self) -> int:
        """The exit code for all: that of the first failure (128 + N for signal N), else 130, 75 or 0."""
        if self.failed is None:
            return max(self.codes, key=IN_ORDER.index)
        code = self.codes[self.failed]
        return code if code > 0 else 128 - code


def run(
    commands: Sequence[Sequence[str]],
    environments: Sequence[Mapping[str, str]] | None = None,
    stdout: IO[Any] | None = None,
) -> Ended:
    """Run ``commands`` side by side until all have ended, in this process's environment or in one each.

    Each child has its own process group: Ctrl-C on the terminal reaches only this process, which passes every signal on
    to each child once. A child may take as long as it needs to save; if a child fails, the others are ended.
    """
    asked: list[int] = []
    children: list[subprocess.Popen[Any]] = []
    failed: int | None = None
    before = {number: signal.getsignal(number) for number in (*PASSED_ON, signal.SIGTTOU)}
    for number in PASSED_ON:
        if before[number] is not signal.SIG_IGN:  # ignored by nohup, or a shell's "&"
            signal.signal(number, lambda number, _: asked.append(number))
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # inherited: after `stty tostop`, printing would stop the children
    try:
        for place, words in enumerate(commands):
            own = None if environments is None else environments[place]
            start = subprocess.Popen(words, env=own, stdin=subprocess.DEVNULL, stdout=stdout, process_group=0)
            children.append(start)
        limit = float("inf")
        while left := [child for child in children if child.poll() is None]:
            while asked:
                received = asked.pop(0)
                _send(left, received)
                if received == signal.SIGTSTP:
                    os.kill(os.getpid(), signal.SIGSTOP)  # stops here until SIGCONT
                    _send(left, signal.SIGCONT)
            if failed is None and (failed := _first_failure(children)) is not None:
                limit = time.monotonic() + GRACE
                _send(left, signal.SIGTERM)
            if time.monotonic() > limit:
                _send(left, signal.SIGKILL)
            time.sleep(LOOK_EVERY)
        failed = _first_failure(children) if failed is None else failed
    finally:
        _send(children, signal.SIGKILL)  # none is left, unless one could not be started
        codes = tuple(child.wait() for child in children)
        for number, handler in before.items():
            signal.signal(number, handler)
    return Ended(codes, failed)


def _first_failure(children: Sequence[subprocess.Popen[Any]]) -> int | None:
    """The place of a child that has failed by now."""
    ended = ((place, child.returncode) for place, child in enumerate(children))
    return next((place for place, code in ended if code is not None and code not in IN_ORDER), None)


def _send(children: Sequence[subprocess.Popen[Any]], number: int) -> None:
    for child in children:
        child.send_signal(number)  # nothing happens if it has ended
