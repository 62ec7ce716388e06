"""A thread that ends the process if no step finishes for too long."""

import faulthandler
import math
import time


class Watchdog:
    """Ends this process, after printing all stacks, if it isn't fed for ``timeout`` seconds, or 1 % less.

    Each new deadline starts a new thread, which costs more than a step's other checks, so not every feed moves it.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._moved = -math.inf

    def feed(self) -> None:
        now = time.monotonic()
        if now - self._moved >= 0.01 * self._timeout:
            faulthandler.dump_traceback_later(self._timeout, exit=True)
            self._moved = now
