"""Slurm's queue, as squeue shows it."""

import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

logger = logging.getLogger(__name__)

ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY",
    "REVOKED", "SPECIAL_EXIT",
}  # fmt: skip


@dataclass(frozen=True)
class QueuedJob:
    """A job in Slurm's queue."""

    state: str  # PENDING, RUNNING, ...
    reason: str  # why it is pending: Priority, Resources, Dependency, BeginTime (requeued a moment ago), ...
    nodes: str
    array: str = ""  # the id of its array; of a job that is none, its own


def read_queue() -> dict[str, QueuedJob]:
    """Slurm's queue by job id; the last task of an array has the array's. Empty without Slurm or its answer."""
    if not shutil.which("squeue"):
        return {}
    command = ["squeue", "--all", "--noheader", "--array", "--format=%A|%F|%T|%r|%N", "--states=all"]
    try:
        done = subprocess.run(
            command, env=squeue_environment(os.environ), encoding="utf-8", errors="replace", capture_output=True,
            timeout=60, check=True,
        )  # fmt: skip
        return parse_queue(done.stdout)
    except subprocess.CalledProcessError as error:
        if "configuration source" in error.stderr:  # Slurm's commands on a machine of no cluster
            return {}
        reason = f"squeue failed ({' '.join(error.stderr.split())})"
    except subprocess.TimeoutExpired:
        reason = "squeue gave no answer in 60 s"
    logger.warning("%s: what follows is from the folders alone, and jobs that wait are not seen", reason)
    return {}


def squeue_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the filters and formats that a user's shell may set for squeue, as slurm/clean.sh has it.

    The cluster stays the one that sbatch submits to: ``SBATCH_CLUSTERS`` if set, else ``SLURM_CLUSTERS``.
    """
    cleaned = {
        name: value
        for name, value in environment.items()
        if not name.startswith("SQUEUE_") and name not in ("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_EXIT_ERROR")
    }
    if cluster := environment.get("SBATCH_CLUSTERS"):
        cleaned["SLURM_CLUSTERS"] = cluster
    return cleaned


def parse_queue(text: str) -> dict[str, QueuedJob]:
    queue: dict[str, QueuedJob] = {}
    for line in text.splitlines():
        job, array, state, reason, nodes = line.split("|")
        if state not in ENDED:
            state = "RUNNING" if state == "SIGNALING" else state  # its batch script is told of its time limit
            queue[job] = QueuedJob(state, reason, nodes, array)
    return queue
