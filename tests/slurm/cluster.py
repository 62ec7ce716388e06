"""The test cluster of cluster.sh from Python: submit our job scripts, break machines, wait for ends."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
# Others are on the way: PENDING, RUNNING, COMPLETING, SIGNALING (a batch script is told of its time limit), ...
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
# Two ranks a run are enough to fail in every way, and start in seconds
TWO_RANKS = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=30")


@dataclass(frozen=True)
class Cluster:
    folder: Path

    def call(self, *arguments: object, check: bool = True, **environment: str) -> str:
        """Run ``cluster.sh ARGUMENTS``; its output. Fails, with the output, where it fails."""
        done = subprocess.run(
            [str(SCRIPT), *map(str, arguments)],
            env=os.environ | {"CLUSTER_DIR": str(self.folder)} | environment,
            cwd=self.folder.parent,
            text=True,
            capture_output=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0 or not check, f"cluster.sh {arguments}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip()

    def run(self, *command: object, check: bool = True, **environment: str) -> str:
        """Run a command on the login machine."""
        return self.call("exec", *command, check=check, **environment)

    def submit(self, script: str, *arguments: object, options: tuple[str, ...] = (), **environment: str) -> str:
        """sbatch ``slurm/SCRIPT``; the job's id."""
        variables = {"DOCTOR": "no", "VIT_MLFLOW": "off", "TORCHDYNAMO_DISABLE": "1"} | environment
        return self.run("sbatch", "--parsable", *options, REPO / "slurm" / script, *arguments, **variables)

    def jobs(self, job: str) -> list[dict[str, str]]:
        """``scontrol show job`` as dicts, one a task of an array."""
        records = self.run("scontrol", "-o", "show", "job", job, check=False).splitlines()
        return [dict(item.partition("=")[::2] for item in record.split()) for record in records if "JobId=" in record]

    def wait(self, job: str, timeout: float) -> str:
        """Wait until all tasks of ``job`` have ended; the state of the worst. Fails where it takes longer."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            states = {record["JobState"] for record in self.jobs(job)}
            if states and states <= ENDED:
                return "COMPLETED" if states == {"COMPLETED"} else ", ".join(sorted(states - {"COMPLETED"}))
            time.sleep(0.5)
        raise AssertionError(f"job {job} has not ended after {timeout} s: {self.jobs(job)}")

    def nodes(self, job: str) -> list[str]:
        """The nodes that ``job`` runs on, or ran on last; none while it waits."""
        (record,) = self.jobs(job)
        listed = record.get("NodeList", "(null)")
        return self.run("scontrol", "show", "hostnames", listed).split() if listed not in ("(null)", "") else []

    def wait_running(self, job: str, timeout: float) -> list[str]:
        """Wait until ``job`` runs, or has run already; its nodes."""
        limit = time.monotonic() + timeout
        while time.monotonic() < limit:
            (record,) = self.jobs(job)
            if record["JobState"] in ("RUNNING", "SIGNALING", "COMPLETING", "COMPLETED"):
                return self.run("scontrol", "show", "hostnames", record["NodeList"]).split()
            time.sleep(0.2)
        raise AssertionError(f"job {job} does not run after {timeout} s: {self.jobs(job)}")
