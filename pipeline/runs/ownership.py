"""One writer per run: the newest attempt owns the run folder, and an older one stops before it writes again.

When Slurm loses contact with a node (slurmd killed, network down), it restarts the job elsewhere while the old ranks
run on for up to a minute. Both would write the same checkpoints. ``owner.json`` names the attempt that started last;
rank 0 reads it before each write. Only the moment between this check and the rename after it stays unprotected.
"""

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.runs.folder import OWNER


class FencedError(RuntimeError):
    """A later attempt has taken over the run folder: this one must not write to it any more."""


@dataclass(frozen=True)
class Owner:
    """owner.json."""

    token: str  # random: identifies this attempt
    job: str  # Slurm's job id; empty without Slurm
    restart: int  # SLURM_RESTART_COUNT: number of times that Slurm has restarted this job
    in_job_restart: int  # IN_JOB_RESTART: number of times that slurm/launch.sh has restarted the ranks since then
    host: str
    pid: int
    started: str  # the process's start time in clock ticks since boot, to recognise a reused pid

    @property
    def start(self) -> tuple[int, int]:
        """Orders the starts of one job."""
        return self.restart, self.in_job_restart


@dataclass(frozen=True)
class Fence:
    run_dir: Path
    owner: Owner

    def holds(self) -> bool:
        """Whether this attempt still owns the run folder."""
        current = read_owner(self.run_dir)
        return current is not None and current.token == self.owner.token

    def check(self) -> None:
        """Raise FencedError if a later attempt has started."""
        if not self.holds():
            raise FencedError(
                f"{self.run_dir} now belongs to another attempt ({read_owner(self.run_dir)}): this one "
                f"(job {self.owner.job or 'none'}, restart {self.owner.restart}) stops without writing"
            )


def claim(run_dir: Path, environment: Mapping[str, str]) -> Fence:
    """Make this process the run folder's owner. Call once, on rank 0 alone, before anything is written.

    Raises FencedError if a later restart of the same Slurm job owns it, and UserError if its owner is a process that
    still runs on this host.
    """
    mine = Owner(
        token=secrets.token_hex(8),
        job=environment.get("SLURM_JOB_ID", ""),
        restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
        in_job_restart=int(environment.get("IN_JOB_RESTART", "0")),
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_start_time(os.getpid()),
    )
    current = read_owner(run_dir)
    if current is not None:
        same_job = mine.job != "" and current.job == mine.job
        if same_job and current.start > mine.start:
            raise FencedError(
                f"{run_dir} belongs to start {current.start} of job {mine.job}, this is {mine.start} (restarts by "
                "Slurm, restarts in the job)"
            )
        alive = current.host == mine.host and current.started != "" and _start_time(current.pid) == current.started
        if alive and not same_job and current.pid != mine.pid:
            raise UserError(
                f"--run-dir {str(run_dir)!r} is being trained by process {current.pid} on this host: "
                "wait for it, stop it, or name another --run-dir"
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / OWNER, asdict(mine))
    return Fence(run_dir, mine)


def read_owner(run_dir: Path) -> Owner | None:
    """Content of owner.json, or None if there is none."""
    path = run_dir / OWNER
    try:
        return Owner(**read_json(path)) if path.is_file() else None
    except TypeError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): delete it if no process is training this run") from error


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat; empty if there is no such process (or no /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        return ""
