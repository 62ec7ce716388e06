"""Real ranks for tests: processes with torchrun's variables, a time limit, and none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.distributed import free_port


@dataclass(frozen=True)
class Finished:
    code: int
    output: str  # stdout and stderr together


class Ranks:
    """``world`` processes of ``python ARGUMENTS``; use as a context manager, which kills what still runs."""

    def __init__(self, world: int, arguments: Sequence[object], folder: Path, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
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
                "OMP_NUM_THREADS": "1",
                "TORCHDYNAMO_DISABLE": "1",  # saves two seconds of imports a start
                "PYTHONWARNINGS": "ignore::FutureWarning",
            }
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, arguments)],
                        env=os.environ | variables | environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait(self, timeout: float) -> list[Finished]:
        """Wait for all. Fails, with the ranks' output, where one takes longer than ``timeout`` seconds."""
        limit = time.monotonic() + timeout
        for process in self.processes:
            try:
                process.wait(max(limit - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"a rank still runs after {timeout} s:\n{self.output()}") from None
        return [
            Finished(process.returncode, log.read_text())
            for process, log in zip(self.processes, self.logs, strict=True)
        ]

    def output(self) -> str:
        return "\n".join(f"--- rank {rank}\n{log.read_text()}" for rank, log in enumerate(self.logs))

    def wait_for(self, text: str, timeout: float) -> None:
        """Wait until rank 0 has printed ``text``."""
        limit = time.monotonic() + timeout
        while text not in self.logs[0].read_text():
            assert time.monotonic() < limit, f"{text!r} did not appear within {timeout} s:\n{self.output()}"
            assert self.processes[0].poll() is None, f"rank 0 left before {text!r}:\n{self.output()}"
            time.sleep(0.05)


def run_ranks(
    world: int, arguments: Sequence[object], folder: Path, timeout: float = 120, **environment: str
) -> list[Finished]:
    """Run ``world`` ranks to their end; each must leave with code 0."""
    with Ranks(world, arguments, folder, **environment) as ranks:
        finished = ranks.wait(timeout)
        assert all(rank.code == 0 for rank in finished), ranks.output()
        return finished
