"""Makes a process that imports this at its start (as sitecustomize) hang in the model's forward pass after SIGUSR2.

A real hang of Python: the main thread sleeps, all other threads run on, among them the heartbeat and gloo's. The signal
may come anywhere in a step, so a timer interrupts the main thread until it is inside the model.
"""

import signal
import time
from types import FrameType

MODEL = "pipeline/model/vit.py"
EVERY = 0.001  # seconds between looks at the main thread


def look(*_: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)


def hang_in_the_model(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.endswith(MODEL):
            signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(3600)
        frame = frame.f_back


signal.signal(signal.SIGALRM, hang_in_the_model)
signal.signal(signal.SIGUSR2, look)
