"""Requests to stop: SIGUSR1 and SIGTERM (Slurm, supervisors) and SIGINT (Ctrl-C) set a flag that the loop reads.

The loop then saves a checkpoint and exits. A second Ctrl-C exits at once, without saving. This must work while the main
thread waits in a collective, during which no Python handler runs: so a thread reads the signals from a pipe, to which
the interpreter's C handler writes their numbers (signal.set_wakeup_fd).
"""

import logging
import multiprocessing
import os
import signal
import threading
import time

from pipeline.core.errors import EXIT_INTERRUPTED
from pipeline.core.log import ONCE

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
# Seconds within which several SIGINTs count as one Ctrl-C: a terminal and a launcher both deliver it, and srun wants
# two within a second before it passes one on
SAME_PRESS = 1.0
SHOW_CURSOR = b"\x1b[?25h"  # DECTCEM of ECMA-48 terminals


class StopRequest:
    """``requested`` becomes true when a stop signal reaches this process. Create once, in the main thread."""

    def __init__(self) -> None:
        self.requested = False
        self.interrupted = False  # by Ctrl-C
        # torchrun and accelerate send SIGTERM to the ranks when Ctrl-C is pressed a second time, jobs.launch SIGINT
        self._second = {signal.SIGINT} | ({signal.SIGTERM} if "TORCHELASTIC_RUN_ID" in os.environ else set())
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(reader,), name="stop signals", daemon=True).start()
        for number in SIGNALS:
            if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # shells ignore it for "&"
                signal.signal(number, lambda *_: None)  # the C handler writes only signals that Python handles

    def _read(self, reader: int) -> None:
        pressed = 0.0  # time of the first Ctrl-C, by the monotonic clock
        while True:
            for number in os.read(reader, 64):
                if self.interrupted and number in self._second and time.monotonic() > pressed + SAME_PRESS:
                    _leave()
                if number == signal.SIGINT and not self.interrupted:
                    self.interrupted, pressed = True, time.monotonic()
                    logger.info(
                        "Ctrl-C: stops and saves after the current step; press Ctrl-C again to exit without saving",
                        extra=ONCE,
                    )
                if number in SIGNALS:
                    self.requested = True


def _leave() -> None:
    """End the process from this thread, whatever the main thread waits for."""
    logger.info("stopped without saving; run the same command to resume from the last checkpoint", extra=ONCE)
    if os.isatty(2):
        os.write(2, SHOW_CURSOR)  # a progress bar hides the cursor, and replaces sys.stderr
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(EXIT_INTERRUPTED)
