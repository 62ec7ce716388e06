"""The job scripts without a cluster: bash lines after env.sh, and slurm/submit_all.sh."""

import os
import subprocess
from pathlib import Path

from tests.slurm.cluster import REPO


def sourced(folder: Path, *lines: str, code: int = 0, **environment: str) -> str:
    """What bash lines print after launch.sh, in a job whose run folder is ``folder``; no Slurm."""
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x", "PATH": os.environ["PATH"]} | environment
    lines = (f"source {REPO}/slurm/launch.sh", f"RUN={folder}", *lines)
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], env=variables, text=True, capture_output=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def submit_all(work: Path, *arguments: object, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [str(REPO / "slurm" / "submit_all.sh"), *map(str, arguments)],
        env=os.environ | {"VIT_WORK": str(work)} | environment,
        text=True,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
