"""vit submit, status, logs and cancel: on a machine without a cluster, and with real jobs."""

import runpy
import sys
import time
from pathlib import Path

import pytest

from jobs.submit import check_parent
from pipeline.core.errors import UserError
from pipeline.runs.folder import CHECKPOINTS, META, Status, write_status
from tests.helpers.mistakes import mistake
from tests.slurm.cluster import REPO, Cluster
from tests.slurm.faults import OPTIONS

QUICK = {"PYTHONPATH": str(REPO), "DOCTOR": "no", "VIT_MLFLOW": "off", "TORCHDYNAMO_DISABLE": "1"}
SITE = {"GPUS_PER_NODE": "1", "CPUS_PER_GPU": "1", "WHOLE_NODES": "no", "TIME_LIMIT": "10"}


def on_cluster(cluster: Cluster, *arguments: object, check: bool = True, **environment: str) -> str:
    return cluster.run(sys.executable, "-m", *arguments, check=check, **(QUICK | SITE | environment))


def test_dry_run_prints_both_lines_and_what_would_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.setenv("IN21K", str(tmp_path / "in21k"))
    words = ["pretrain", "tiny", "--nodes", "2", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["jobs.submit", *words])
    monkeypatch.delitem(sys.modules, "jobs.submit", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("jobs.submit", run_name="__main__")
    captured = capsys.readouterr()
    assert caught.value.code == 0, captured
    sbatch, srun = captured.out.splitlines()
    assert sbatch.startswith("sbatch --job-name=pretrain-tiny --nodes=2 --ntasks-per-node=2 ")
    assert srun.startswith("srun --kill-on-bad-exit=1 --label --nodes=2 --ntasks=4 ")
    (warning,) = captured.err.splitlines()
    assert warning.startswith("warning: ")
    assert str(tmp_path / "in21k") in warning


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("pretrain", "tiny", "--nodes", "3"), {}, "global_batch"),
        (("pretrain", "tiny", "--optim.lr", "high"), {}, "--optim.lr"),
        (("pretrain", "small"), {}, "RECIPE 'small' is unknown"),
        (("pretrain", "tiny", "--data.train", "/nowhere"), {}, "'/nowhere' does not exist"),
        (
            ("pretrain", "l16", "--nodes", "1", "--train.micro-batch", "512"),
            {"GPU_MODEL": "A100"},
            "GPU_MODEL A100 has 80 GB: give --train.",
        ),
        (("finetune", "tiny"), {}, "--parent"),
        (
            ("finetune", "tiny", "--array", "0-1", "--optim.lr", "0.5"),
            {},
            "error: --optim.lr 0.5 would be that of every",
        ),
        (("finetune", "tiny", "--array", "0-1", "--run-dir=/r"), {}, "error: --run-dir /r would be that of every task"),
        (("pretrain", "tiny", "--mem-per-cpu", "4G"), {}, "is not in vit submit --help: --sbatch 'OPTION'"),
        (("evaluate", "/nowhere", "--data", "/data"), {}, "MODEL '/nowhere' does not exist"),
        (("evaluate",), {}, "MODEL is missing"),
        (("evaluate", "--data", "/data", "/nowhere"), {}, "MODEL is missing: name it first"),
        (("shard", "/nowhere", "/data"), {}, "INPUT '/nowhere' does not exist"),
        (("shard", "RAW"), {}, "Missing from vit shard: OUTPUT"),
        (("shard",), {}, "Missing from vit shard: INPUT"),
        (("shard", "RAW", "/data", "--val-frac", "0.1"), {}, "Perhaps you meant: --val-fraction"),
        (("shard", "RAW", "/data", "--val-fraction", "10"), {}, "--val-fraction 10.0 must be at least 0 and below 1"),
        (("shard", "RAW", "/data", "--workers", "4"), {}, "error: --workers 4 has no effect in a job, which sets it"),
        (("shard", "RAW", "/data", "--array", "1-3"), {}, "error: --array is not 0-N"),
        (("command",), {}, "COMMAND is missing"),
        (("command", "--time", "60"), {}, "COMMAND is missing"),
        (("campaign",), {}, "RECIPE is missing"),
        (("campaign", "l16", "--raw", "RAW", "--in1k", "RAW", "--name", "a/b"), {}, "--name 'a/b' has a slash"),
        (("train",), {}, "KIND 'train' is unknown"),
        (("pretrain", "tiny", "--nodes", "many"), {}, "--nodes 'many' must be a whole number"),
        (("campaign", "l16", "--raw", "RAW", "--in1k", "RAW", "--pretrain-sbatch", "--nodes=3"), {}, "global_batch"),
    ],
)
def test_what_is_refused_before_it_waits(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    environment: dict[str, str],
    message: str,
) -> None:
    (tmp_path / "raw.tar").touch()
    words = [word.replace("RAW", str(tmp_path / "raw.tar")) for word in arguments]
    settings = {"VIT_WORK": str(tmp_path), "IN21K": str(digits), "IN1K": str(tmp_path / "in1k")} | environment
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    line = mistake(capsys, monkeypatch, "jobs.submit", *words)
    assert message.replace("_", "-") in line.replace("_", "-")


def test_a_fine_tuning_waits_for_its_parent(tmp_path: Path) -> None:
    """It would take the newest checkpoint of a run that is still training, in silence."""
    run = tmp_path / "parent"
    (run / CHECKPOINTS / "step-00000010").mkdir(parents=True)
    with pytest.raises(UserError, match="has no complete checkpoint yet: wait for its job with --dependency"):
        check_parent(str(run))
    (run / CHECKPOINTS / "step-00000010" / META).write_text("{}")
    for state in ("running", "stopped", "failed"):
        write_status(run, Status(state, 12, 400, 1, 0.0, {}))  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"is not finished \(step 12 of 400\): wait for its job with --dep"):
            check_parent(str(run))
    check_parent(str(run / CHECKPOINTS / "step-00000010"))  # on purpose
    write_status(run, Status("finished", 400, 400, 1, 0.0, {}))
    check_parent(str(run))


def test_a_run_that_is_no_job_has_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, message in (
        (tmp_path / "run", "does not exist and has no job in"),
        (tmp_path, "was not started by Slurm"),
    ):
        assert message in mistake(capsys, monkeypatch, "jobs.logs", str(run))


@pytest.mark.slurm
def test_a_job_from_its_submission_to_its_log(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    """Pending: seen, followed, cancelled. Then submitted again, and read to its end."""
    site = {"RUNS": str(tmp_path / "runs"), "IN21K": str(digits)}
    run = tmp_path / "runs" / "mine"
    submit = ("jobs.submit", "pretrain", "tiny", "--job-name", "mine", "--output", tmp_path / "%x-%j.out")
    fields = (*OPTIONS, "--train.zero-stage", "0", "--schedule.steps", "12")
    said = on_cluster(cluster, *submit, "--hold", *fields, **site)
    assert f"see: vit status {run} · vit logs {run} --follow · vit cancel {run}" in said
    status = on_cluster(cluster, "jobs.status", "--json", "-", run)
    assert '"name": "mine", "state": "pending"' in status
    assert "JobHeldUser" in status
    assert f"--run-dir '{run}' has job" in on_cluster(cluster, *submit, *fields, check=False, **site)
    assert "is pending (JobHeldUser), and there is no log yet" in on_cluster(cluster, "jobs.logs", run, check=False)
    said = on_cluster(cluster, "jobs.cancel", run)
    assert f"{run}: cancelled job" in said
    assert "which was pending" in said
    said = on_cluster(cluster, "jobs.cancel", run, check=False)
    assert "does not exist and has no job in Slurm's queue" in said

    said = on_cluster(cluster, *submit, "--no-check", *fields, **site)
    job = next(line for line in said.splitlines() if line.startswith("Submitted batch job")).split()[-1]
    followed = on_cluster(cluster, "jobs.logs", run, "--follow")
    assert f"mine {job}: finished at step 12: {run}" in followed
    assert cluster.wait(job, timeout=200) == "COMPLETED"
    assert "step 12" in on_cluster(cluster, "jobs.logs", run, "--rank", 0)
    assert "--rank 7 has no log: there are rank-0000.log to" in on_cluster(
        cluster, "jobs.logs", run, "--rank", 7, check=False
    )
    assert "no job in Slurm's queue, nothing to cancel" in on_cluster(cluster, "jobs.cancel", run)
    assert "is finished: give another --job-name" in on_cluster(cluster, *submit, *fields, check=False, **site)


@pytest.mark.slurm
def test_one_task_of_an_array_is_cancelled_alone(cluster: Cluster, tmp_path: Path) -> None:
    """The last task has the array's id, by which scancel would end them all."""
    job = cluster.submit("command.sh", "sleep", 250, options=("--array=0-1", "--cpus-per-task=1", "--output=/dev/null"))
    limit = time.monotonic() + 120
    while {record["JobState"] for record in cluster.jobs(job)} != {"RUNNING"} and time.monotonic() < limit:
        time.sleep(0.2)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "attempts.tsv").write_text(f"start\t{job}\t0\t0\t1\tnode1\n")
    assert f"cancelled job {job}_1, which was running" in on_cluster(cluster, "jobs.cancel", tmp_path)
    states = {record["ArrayTaskId"]: record["JobState"] for record in cluster.jobs(job)}
    cluster.run("scancel", job)
    assert states.pop("0") == "RUNNING"
    assert states["1"] in ("CANCELLED", "COMPLETING"), states
