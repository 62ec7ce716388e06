"""Variables of a user's shell, of site modules and of surrounding jobs change nothing that our scripts do."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.runs.slurm_queue import squeue_environment
from tests.helpers.waiting import wait_until
from tests.slurm.cluster import REPO, Cluster
from tests.slurm.scripts import sourced, submit_all

# squeue's and scontrol's input variables (their man pages), with values that hide jobs or change the output
FILTERS = {
    "SQUEUE_ACCOUNT": "nobody", "SQUEUE_ARRAY": "1", "SQUEUE_FORMAT": "%j", "SQUEUE_FORMAT2": "name",
    "SQUEUE_LICENSES": "matlab", "SQUEUE_NAMES": "other", "SQUEUE_PARTITION": "urgent", "SQUEUE_QOS": "high",
    "SQUEUE_SORT": "-p", "SQUEUE_STATES": "RUNNING", "SQUEUE_USERS": "nobody", "SQUEUE_PRIORITY": "1",
    "SQUEUE_SIBLING": "1", "SQUEUE_LOCAL": "1", "SQUEUE_FEDERATION": "1", "SINFO_FORMAT": "%P",
    "SINFO_PARTITION": "urgent", "SCONTROL_FEDERATION": "1", "SLURM_TIME_FORMAT": "%a %T", "SLURM_BITSTR_LEN": "1",
    "SLURM_EXIT_ERROR": "3",
}  # fmt: skip
SHELL = {
    "CDPATH": f"{REPO}:/", "GREP_OPTIONS": "--color=always", "GREP_COLORS": "mt=01;31", "LS_COLORS": "di=01;34",
    "TAPE": "/dev/st0", "POSIXLY_CORRECT": "1", "GLOBIGNORE": "*", "LC_ALL": "C", "PYTHONSAFEPATH": "1",
    "PYTHONOPTIMIZE": "2", "FORCE_COLOR": "1",
}  # fmt: skip
STEP = {  # srun's input variables that nothing but a surrounding job or a shell sets
    "SLURM_STDOUTMODE": "/dev/null", "SLURM_STDERRMODE": "/dev/null", "SLURM_WORKING_DIR": "/",
    "SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_TIMELIMIT": "1", "SLURM_LABELIO": "1", "SLURM_EXPORT_ENV": "NONE",
    "SRUN_EXPORT_ENV": "NONE", "SLURM_PARTITION": "none", "SLURM_IMMEDIATE": "1", "SLURM_GPUS_PER_NODE": "64",
    "SLURM_MEM_PER_NODE": "1",
}  # fmt: skip


def campaign(cluster: Cluster, work: Path, **environment: str) -> str:
    raw = work / "raw.tar"
    raw.touch()
    return cluster.run(
        REPO / "slurm" / "submit_all.sh", "tiny", "--raw", raw, "--in1k", raw, "--shard-sbatch", "--hold --array=0-1",
        VIT_WORK=str(work), **environment,
    )  # fmt: skip


def states(cluster: Cluster, work: Path, **environment: str) -> dict[str, str]:
    command = (
        sys.executable,
        "-m",
        "jobs.status",
        "--json",
        "-",
        work / "campaigns" / "tiny",
        work / "campaigns" / "data-in1k",
    )
    lines = cluster.run(*command, PYTHONPATH=str(REPO), **environment).splitlines()
    return {row["name"]: row["state"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def queued(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign whose jobs wait in the queue."""
    work = tmp_path_factory.mktemp("queued")
    assert campaign(cluster, work).count("submitted job") == 11
    assert set(states(cluster, work).values()) == {"pending"}
    return work


@pytest.mark.slurm
@pytest.mark.parametrize("name", [*FILTERS, "the shell's"])
def test_what_is_queued_is_seen(cluster: Cluster, queued: Path, name: str) -> None:
    variables: Mapping[str, str] = {name: FILTERS[name]} if name in FILTERS else SHELL
    again = campaign(cluster, queued, **variables)
    assert again.count("is queued") == 11, again  # and fails where squeue shows other jobs, or in another format
    assert "submitted" not in again


@pytest.mark.slurm
def test_status_sees_what_is_queued(cluster: Cluster, queued: Path) -> None:
    assert set(states(cluster, queued, **(FILTERS | SHELL | {"PYTHONOPTIMIZE": ""})).values()) == {"pending"}
    for name in FILTERS:
        if name.startswith("SQUEUE_") or name == "SLURM_TIME_FORMAT":
            assert name not in squeue_environment(FILTERS)


@pytest.mark.slurm
def test_a_preemption_is_no_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    """A command's job is requeued after the one, and gives up at the other; its log is our own."""
    options = (f"--output={tmp_path}/log", "--exclusive", "--nodes=1", "--time=5")
    started = tmp_path / "started"
    words = ("sh", "-c", f"touch {started}; exec sleep 250")
    job = cluster.submit("command.sh", *words, options=options, **(FILTERS | SHELL | STEP))
    (node,) = cluster.wait_running(job, timeout=120)
    wait_until(started.exists)
    other = cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--exclusive", f"--nodelist={node}", "--time=1",
        "--output=/dev/null", "--wrap=sleep 1",
    )  # fmt: skip
    limit = time.monotonic() + 120
    while "requeueing" not in (log := (tmp_path / "log").read_text()) and time.monotonic() < limit:
        time.sleep(0.2)
    cluster.run("scancel", job, other)
    assert "after SIGUSR1; requeueing" in log, log
    assert "time limit" not in log


@pytest.mark.slurm
def test_a_step_takes_nothing_from_the_shell(cluster: Cluster, tmp_path: Path) -> None:
    options = (f"--output={tmp_path}/log", "--cpus-per-task=1", "--time=5", f"--chdir={tmp_path}")
    job = cluster.submit("command.sh", "pwd", options=options, **(FILTERS | SHELL | STEP))
    assert cluster.wait(job, timeout=200) == "COMPLETED", (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text() == f"{tmp_path}\n"


def test_facts_of_a_job_are_not_read_from_its_users_text(tmp_path: Path) -> None:
    text = "JobId=7 JobName=Reason=TimeLimit\n   JobState=RUNNING Reason=None\n"
    text += "   PreemptEligibleTime=2026-11-29T07:00:00 PreemptTime=2026-11-29T08:00:00\n"
    text += "   Command=/x/slurm/command.sh Reason=TimeLimit JobState=COMPLETING"
    lines = (f"facts='{text}'", 'scontrol() { echo "$facts"; }', "asked=USR1", "at_time_limit; echo $?")
    assert sourced(tmp_path, *lines) == "1\n"


@pytest.fixture
def commands(tmp_path: Path) -> str:
    """PATH with an empty queue and an sbatch that writes down its options, variables and cluster."""
    variables = '$(env | grep ^SBATCH | sort | paste -sd " ")'
    sbatch = f'echo "$* [{variables}] [${{SLURM_CLUSTERS:-}}]" >>{tmp_path}/sbatch.log; echo "12;x"'
    for name, line in (("squeue", f'echo "${{SLURM_CLUSTERS:-}}" >{tmp_path}/squeue.log'), ("sbatch", sbatch)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "raw.tar").touch()
    return f"{tmp_path}:{os.environ['PATH']}"


def test_sbatch_gets_no_sizes_from_the_shell(tmp_path: Path, commands: str) -> None:
    """An array of pretrainings in one folder, an sbatch that waits, no requeue: named, and not obeyed."""
    raw = ("tiny", "--raw", tmp_path / "raw.tar", "--in1k", tmp_path / "raw.tar")
    harmful = {"SBATCH_ARRAY_INX": "0-3", "SBATCH_WAIT": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_SIGNAL": "USR1@1"}
    text = submit_all(tmp_path, *raw, PATH=commands, SBATCH_PARTITION="gpu", SBATCH_CLUSTERS="lab", **harmful)
    for name, value in harmful.items():
        assert f"warning: {name}='{value}' is ignored" in text
    calls = (tmp_path / "sbatch.log").read_text().splitlines()
    assert len(calls) == 11
    assert all(call.endswith(" [SBATCH_PARTITION=gpu] [lab]") for call in calls), calls
    assert (tmp_path / "squeue.log").read_text() == "lab\n", "the queue of the cluster that sbatch submits to"


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"SLURM_CLUSTERS": "a,b"}, (), "SLURM_CLUSTERS 'a,b' names several clusters"),
        ({}, ("--pretrain-sbatch", "--nodes=2 -M b"), "--pretrain-sbatch '--nodes=2 -M b' names its own cluster"),
    ],
)
def test_a_campaign_stays_on_one_cluster(
    tmp_path: Path, commands: str, variables: dict[str, str], options: tuple[str, ...], message: str
) -> None:
    raw = ("tiny", "--raw", tmp_path / "raw.tar", "--in1k", tmp_path / "raw.tar")
    assert message in submit_all(tmp_path, *raw, *options, code=2, PATH=commands, **variables)
    assert not (tmp_path / "sbatch.log").exists()


@pytest.mark.parametrize(("error", "held"), [("No locks available", False), ("Resource temporarily unavailable", True)])
def test_a_file_system_without_locks(tmp_path: Path, commands: str, error: str, held: bool) -> None:
    """submit_all.sh waits for nobody where nobody holds the lock, or can."""
    errno = {"No locks available": "ENOLCK", "Resource temporarily unavailable": "EWOULDBLOCK"}[error]
    (tmp_path / "flock.c").write_text(
        f"#include <errno.h>\nint flock(int fd, int how) {{ errno = {errno}; return -1; }}\n"
    )
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", tmp_path / "flock.so", tmp_path / "flock.c"], check=True, timeout=60
    )
    raw = ("tiny", "--raw", tmp_path / "raw.tar", "--in1k", tmp_path / "raw.tar")
    text = submit_all(tmp_path, *raw, code=2 if held else 0, PATH=commands, LD_PRELOAD=str(tmp_path / "flock.so"))
    assert ("another submit_all.sh is running" in text) == held
    assert held or re.search(rf"{error}\nwarning: .* can't be locked \(above\)", text), text
