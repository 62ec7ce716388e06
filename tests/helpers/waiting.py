"""Wait for what another process does."""

import time
from collections.abc import Callable


def wait_until(met: Callable[[], object], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < limit, f"not within {seconds} s"
        time.sleep(0.02)
