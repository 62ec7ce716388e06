"""Start whole jobs as a user does, with a time limit, and read what they left."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pipeline.runs import records
from pipeline.runs.folder import METRICS

REPOSITORY = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", 2)
LAUNCH = ("-m", "jobs.launch", "--ranks", 2)
ACCELERATE = (
    # without --multi-gpu, a machine that has none starts one process only and says nothing
    "-m", "accelerate.commands.launch", "--multi-gpu", "--num-processes", 2, "--num-machines", 1,
    "--mixed-precision", "no", "--dynamo-backend", "no", "--main-process-port", 0,
)  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    own = {key: value for key, value in os.environ.items() if key not in launchers}
    speed = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "VIT_MLFLOW": "off"}
    return own | speed | {"PYTHONWARNINGS": "ignore::FutureWarning"} | more


def start(*arguments: object, log: Path, python: str = sys.executable, **variables: str) -> subprocess.Popen[bytes]:
    """``python ARGUMENTS``, its output in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [python, *map(str, arguments)],
            cwd=REPOSITORY,
            env=environment(**variables),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def run(
    *arguments: object,
    log: Path,
    code: int = 0,
    timeout: float = 180,
    python: str = sys.executable,
    **variables: str,
) -> str:
    """Run to the end, which must have exit code ``code``; return the output."""
    process = start(*arguments, log=log, python=python, **variables)
    try:
        assert process.wait(timeout) == code, log.read_text()
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still runs after {timeout} s:\n{log.read_text()}") from None
    finally:
        kill_tree(process)
    return log.read_text()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """kill -9 the process and all below it: torchrun gives each rank a session of its own."""
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


def kill_a_rank_after(process: subprocess.Popen[bytes], run_dir: Path, step: int, choice: random.Random) -> int:
    """kill -9 one rank, chosen at random, once ``run_dir`` has recorded ``step``; return the step recorded last."""
    limit = time.monotonic() + 120
    while not (recorded := losses(run_dir)) or max(recorded) < step:
        assert process.poll() is None, f"left before step {step}"
        assert time.monotonic() < limit, f"step {step} did not come within 120 s"
        time.sleep(0.01)
    os.kill(choice.choice(ranks_of(process)), signal.SIGKILL)
    return max(recorded)


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """The launcher's own child processes that are ranks."""
    children = Path(f"/proc/{launcher.pid}/task").glob("*/children")
    ranks = [int(pid) for file in children for pid in file.read_text().split()]
    assert ranks
    return ranks


def losses(run_dir: Path) -> dict[int, float]:
    """Training loss by step, as the run folder records it."""
    path = run_dir / METRICS
    if not path.exists():
        return {}
    lines, _ = records.read_lines(path)
    return {line.step: line.metrics["train/loss"] for line in lines if "train/loss" in line.metrics}


def last_json(output: str) -> dict[str, float]:
    return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])  # type: ignore[no-any-return]
