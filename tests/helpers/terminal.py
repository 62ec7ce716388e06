"""Programs on a real terminal: what they show, and Ctrl-C as a keyboard sends it."""

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

from tests.helpers.launch import REPOSITORY, environment, kill_tree

CTRL_C = b"\x03"
# Becomes the terminal's foreground program; pytest itself may run in the background, where shells ignore SIGINT
START = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """``command`` on a terminal of its own. A context manager, which kills what still runs."""

    def __init__(self, command: Sequence[object], columns: int = 120, **variables: str) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        kept = environment(TERM="xterm-256color", **variables)
        for name in ("COLUMNS", "LINES", "SLURM_PROCID"):
            kept.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-SE", "-c", START, *map(str, command)],
            cwd=REPOSITORY,
            env=kept,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.raw = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        kill_tree(self.process)
        os.close(self._ours)

    @property
    def text(self) -> str:
        """All that was shown so far, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode(errors="replace").replace("\r\n", "\n"))

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait_for(self, text: str, seconds: float = 150.0) -> None:
        """Read until ``text`` was shown."""
        limit = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < limit, f"{text!r} not within {seconds} s:\n{self.text}"
            assert self._read(limit), f"ended without {text!r}:\n{self.text}"

    def read_more(self, seconds: float = 150.0) -> None:
        """Read what is shown next: a terminal that nobody reads stops its program when it is full."""
        assert self._read(time.monotonic() + seconds), f"ended:\n{self.text}"

    def wait(self, seconds: float = 120.0) -> int:
        """Read to the end; the exit code as a shell states it, 128 + N for signal N.

        After a KeyboardInterrupt inside ``exec`` of a string, which imports do, Python ends itself by SIGINT whatever
        code it was told to exit with.
        """
        limit = time.monotonic() + seconds
        while self._read(limit):
            assert time.monotonic() < limit, f"still runs after {seconds} s:\n{self.text}"
        code = self.process.wait(max(limit - time.monotonic(), 1))
        return code if code >= 0 else 128 - code

    def _read(self, limit: float) -> bool:
        """Wait for more output; False at its end."""
        if not select.select([self._ours], [], [], max(limit - time.monotonic(), 0))[0]:
            return True
        try:
            chunk = os.read(self._ours, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            return False
        self.raw += chunk
        return bool(chunk)
