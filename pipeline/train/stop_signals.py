"""Asked to stop: SIGUSR1 (Slurm before a time limit or preemption) and SIGTERM set a flag that the loop reads."""

import signal
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequest:
    """``requested`` turns true when a stop signal reaches this process. Install once, in the main thread."""

    def __init__(self) -> None:
        self.requested = False
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
