"""One cluster for all Slurm tests, started where this machine can, and the data they train on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

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
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as a data set with the splits train and val."""
    from data_prep.shard import main  # noqa: PLC0415  (only where a cluster runs)
    from jobs.demo import write_raw  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("digits")
    write_raw(folder / "ten_whole.tar", classes=10)
    options = ("--val-fraction", "0.25", "--samples-per-shard", "128", "--workers", "2")
    assert main([str(folder / "ten_whole.tar"), str(folder / "ten"), *options]) == 0
    return folder / "ten"
