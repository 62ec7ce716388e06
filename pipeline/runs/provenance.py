"""The origin of a run: code, packages, machine, job. Recorded without secrets."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.core.secrets import without_secrets
from pipeline.core.source import SOURCE

PACKAGES = ("torch", "deepspeed", "accelerate", "webdataset", "mlflow", "numpy", "simplejpeg", "opencv-python-headless")


def describe_code() -> dict[str, Any]:
    """Git commit and digest of uncommitted changes, Python, packages, host, command, Slurm job. JSON values only."""
    diff = git_diff(SOURCE)
    return {
        "commit": _git(SOURCE, "rev-parse", "HEAD").strip(),
        "dirty": hashlib.sha256(diff.encode()).hexdigest()[:32] if diff else "",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := version(name))},
        "host": socket.gethostname(),
        "command": without_secrets(" ".join(sys.orig_argv)),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
    }


def git_diff(source: Path) -> str:
    """The uncommitted changes to tracked files, secrets hidden; empty outside of git."""
    return without_secrets(_git(source, "diff", "HEAD", "--no-color", "--no-ext-diff"))


def write_code(folder: Path, attempt: int) -> list[Path]:
    """Record the code of an attempt: uncommitted changes as a patch for its commit, and all packages.

    Returns the files: ``packages-<attempt>.txt`` (for ``pip install -r``), and ``changes-<attempt>.diff`` if there are
    changes; untracked files are listed at its top, not copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packages = folder / f"packages-{attempt}.txt"
    each = (one.metadata for one in importlib.metadata.distributions())  # read once: .name and .version both read it
    found = {f"{one['Name']}=={one['Version']}" for one in each}
    packages.write_text("\n".join(sorted(found, key=str.lower)) + "\n", encoding="utf-8")
    changes = git_diff(SOURCE)
    unknown = _git(SOURCE, "ls-files", "--others", "--exclude-standard").splitlines()
    if not changes and not unknown:
        return [packages]
    head = [
        f"# on commit {_git(SOURCE, 'rev-parse', 'HEAD').strip()}",
        *(f"# unknown to git: {name}" for name in unknown),
    ]
    patch = folder / f"changes-{attempt}.diff"
    patch.write_text("\n".join(head) + "\n" + changes, errors="replace", encoding="utf-8")
    return [packages, patch]


def describe_place(devices: int) -> dict[str, str]:
    """Host, Slurm job, nodes, devices and code of this attempt."""
    commit = _git(SOURCE, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").strip()
    place = {
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_restarts": os.environ.get("SLURM_RESTART_COUNT", ""),
        "nodes": os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", ""),
        "fewer_nodes": os.environ.get("FEWER_NODES", ""),  # of slurm/nodes.sh: "4 of 8 nodes"
        "partition": os.environ.get("SLURM_JOB_PARTITION", ""),
        "devices": f"{devices} x {_device_name()}",
        "commit": commit,  # ends in -dirty if tracked files have uncommitted changes
    }
    return {name: value for name, value in place.items() if value}


def _device_name() -> str:
    torch = sys.modules.get("torch")  # training has imported it; nothing else should wait for the import
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "CPU process"


def _git(source: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=20,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
