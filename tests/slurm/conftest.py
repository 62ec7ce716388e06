"""One cluster for all Slurm tests, started where this machine can."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.faults import SLOW, without_slurm

NODES = 8
COMMANDS = ("sbatch", "slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter")


def why_not() -> str:
    """Why this machine can't start a cluster; empty where it can."""
    if os.geteuid() != 0:
        return "a cluster of namespaces needs root"
    if missing := [name for name in COMMANDS if not shutil.which(name)]:
        return f"{', '.join(missing)} not found (apt-get install slurm-wlm munge iproute2 util-linux)"
    if subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "true"], check=False
    ).returncode:
        return "this container may not make namespaces (run it with --privileged)"
    return ""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"the Slurm tests were skipped: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        cluster.call("start", NODES)
        yield cluster
    finally:
        cluster.call("stop")


@pytest.fixture(scope="session")
def reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses by step of the jobs' two ranks without Slurm."""
    return without_slurm(2, digits, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def slow_reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The same with the options SLOW."""
    return without_slurm(2, digits, tmp_path_factory.mktemp("slow"), *SLOW)
