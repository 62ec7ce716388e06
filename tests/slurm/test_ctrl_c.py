"""Ctrl-C in an interactive srun: all ranks save, and the exit code says so. Soak."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from pipeline.runs.folder import read_status
from tests.helpers.jobs import job
from tests.slurm.cluster import REPO, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(300)]
TWO_TASKS = ("--nodes=2", "--ntasks=2", "--nodelist=node1,node2", "--cpus-per-task=1")


def test_srun_passes_ctrl_c_on_and_all_ranks_save(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    """srun -X does at the first Ctrl-C; without it, srun asks for two within a second, which count as one."""
    run = tmp_path / "run"
    words = ("srun", "-X", *TWO_TASKS, sys.executable, "-m", *job(run, digits, steps=100_000))
    script = f"set -m; {shlex.join(map(str, words))} & "  # -m: else a shell's background process ignores SIGINT
    script += f"until grep -qs train/loss {run}/metrics.jsonl; do sleep 0.2; done; kill -INT %1; wait %1; echo code $?"
    variables = {"MASTER_ADDR": "node1", "MASTER_PORT": "23456", "VIT_MLFLOW": "off", "TORCHDYNAMO_DISABLE": "1"}
    said = cluster.run("bash", "-c", script, PYTHONPATH=str(REPO), OMP_NUM_THREADS="1", **variables)
    assert said.count("Ctrl-C: stops and saves") == 1, said
    (saved,) = re.findall(r"saved at step (\d+); run the same command to resume", said)
    assert "code 130" in said
    assert "Traceback" not in said
    status = read_status(run)
    assert status is not None
    assert (status.state, status.step) == ("stopped", int(saved))
