"""Slurm's queue, read from squeue."""

import logging
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError

logger = logging.getLogger(__name__)

ENDED = {
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY",
    "REVOKED", "SPECIAL_EXIT",
}  # fmt: skip


_TRAINING = re.compile(r"/slurm/(?:pretrain|finetune)(?:_\w+)?\.sh(?: |$)")  # in a job's command


@dataclass(frozen=True)
class QueuedJob:
    """A job in Slurm's queue."""

    state: str  # PENDING, RUNNING, ...
    reason: str  # why it is pending: Priority, Resources, Dependency, BeginTime (requeued a moment ago), ...
    nodes: str
    array: str = ""  # the id of its array; its own id if it is not in one
    task: str = ""  # the id for scancel: 12, or 12_3 for a task of an array
    run: str = ""  # the name of its run folder, if it is a training job of ours and of this user


def read_queue() -> dict[str, QueuedJob]:
    """Slurm's queue by job id; the last task of an array has the array's id. Empty without Slurm or if squeue fails."""
    if not shutil.which("squeue"):
        return {}
    try:
        return ask_queue()
    except UserError as error:
        if "configuration source" not in str(error):  # Slurm's commands on a machine outside any cluster
            logger.warning("%s: the state below comes from the folders alone, without pending jobs", error)
        return {}


def ask_queue() -> dict[str, QueuedJob]:
    """Slurm's queue by job id. Raises UserError when squeue is missing or fails."""
    if not shutil.which("squeue"):
        raise UserError("squeue was not found: run this on a machine of the cluster")
    command = ["squeue", "--all", "--noheader", "--array", "--format=%A|%F|%i|%T|%r|%N|%u|%j|%o", "--states=all"]
    try:
        done = subprocess.run(
            command, env=squeue_environment(os.environ), encoding="utf-8", errors="replace", capture_output=True,
            timeout=60, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue failed ({' '.join(error.stderr.split())})") from error
    except subprocess.TimeoutExpired as error:
        raise UserError("squeue did not answer within 60 s: try again") from error
    return parse_queue(done.stdout, user_name())


def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container user without a line in /etc/passwd: squeue shows the number
        return str(os.getuid())


def jobs_of(run: str, queue: Mapping[str, QueuedJob]) -> dict[str, QueuedJob]:
    """The jobs that train in a run folder with this name."""
    return {job: queued for job, queued in queue.items() if queued.run == run}


def squeue_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without squeue's filters and formats from the user's shell, as in slurm/clean.sh.

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


def parse_queue(text: str, user: str = "") -> dict[str, QueuedJob]:
    """squeue's lines by job id, without finished jobs. A job with "|" in its name or command is not a run."""
    queue: dict[str, QueuedJob] = {}
    for line in text.splitlines():
        job, array, task, state, reason, nodes, owner, name, command = line.split("|", 8)
        if state not in ENDED:
            state = "RUNNING" if state == "SIGNALING" else state  # its batch script is being notified of the time limit
            run = ""
            if owner == user and _TRAINING.search(command):
                given = re.findall(r" --run[-_]dir[= ](\S+)", command)
                run = Path(given[-1]).name if given else name
            queue[job] = QueuedJob(state, reason, nodes, array, task, run)
    return queue
