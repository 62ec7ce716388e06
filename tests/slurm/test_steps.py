"""What else a job does on the cluster: jobs.doctor before it trains, an array that shards, one MLflow run. Soak."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.runs import records
from tests.helpers.mlflow_runs import only_run, shown
from tests.slurm.cluster import REPO, TWO_RANKS, Cluster
from tests.slurm.faults import FAULT_STEP, losses, requeue, starts, submit, wait_for_step

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.soak,
    pytest.mark.timeout(900),
    # SQLAlchemy's, of MLflow's own tables
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
NO_GPUS = (*TWO_RANKS, "--gpus-per-node=0")  # the cluster's are not real, and the doctor knows


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_checked_by_doctor_then_trained(
    cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path, launcher: str
) -> None:
    began = time.monotonic()
    settings = {"GPUS_PER_NODE": "0", "DOCTOR": "yes", "LAUNCHER": launcher}
    job = submit(cluster, digits, tmp_path, "checked", options=NO_GPUS, **settings)
    state = cluster.wait(job.id, timeout=240)
    assert state == "COMPLETED", job.log
    assert "Is this cluster fit to train?" in job.log
    assert "2 rank(s) on 2 node(s) connected" in job.log
    assert "fit to train" in job.log
    assert "for 1 data loader worker(s)" in job.log  # as OPTIONS say, not as the recipe does
    assert losses(job.run) == reference
    print(f"{launcher}: doctor and training {time.monotonic() - began:.0f} s")


def test_doctor_in_an_allocation(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    """The two lines of the cluster's tutorial, on a small recipe and dataset."""
    page = (REPO / "docs" / "tutorials" / "tars_to_table.md").read_text()
    export, doctor = re.findall(r"^    ((?:export|srun) .*)$", page, re.MULTILINE)
    doctor = doctor.replace("vit doctor l16", f"{sys.executable} -m jobs.doctor tiny").replace("work/runs", "runs")
    lines = f"cd {tmp_path}; {export}; {doctor.replace('work/shards/in21k', str(digits))} -- --data.workers 1"
    said = cluster.run("salloc", *NO_GPUS, "bash", "-c", lines, PYTHONPATH=str(REPO))
    assert "2 rank(s) on 2 node(s) connected" in said


def test_doctor_names_the_node_that_differs(cluster: Cluster, digits: Path, tmp_path: Path) -> None:
    """node2 has another version of a source file, a run folder of its own and no data; no GPU is real."""
    run = tmp_path / "unfit"
    run.mkdir()
    other = shutil.copy(REPO / "jobs" / "sync.py", tmp_path / "sync.py")
    with Path(other).open("a") as file:
        file.write("# another version\n")
    hidden = [(run, "-t", "tmpfs", "none"), (digits, "-t", "tmpfs", "none"), (REPO / "jobs/sync.py", "--bind", other)]
    for place, *what in hidden:
        cluster.call("on", "node2", "mount", *what, place)
    cluster.call("on", "node2", "mkdir", run / "slurm")
    try:
        options = (*TWO_RANKS, "--nodelist=node1,node2")
        job = submit(cluster, digits, tmp_path, "unfit", options=options, DOCTOR="yes")
        state = cluster.wait(job.id, timeout=240)
    finally:
        for place, *_ in hidden:
            cluster.call("on", "node2", "umount", place)
    assert state == "FAILED", job.log
    rows = [[cell.strip() for cell in line.split("│")] for line in job.log.splitlines() if line.count("│") == 6]
    found = {row[1]: (row[2], row[4]) for row in rows if row[1]}
    faults = {"code": "node2", "devices": "node1, node2", "shared folder": "node2", "loader": "node2"}
    assert {check: nodes for check, (state, nodes) in found.items() if state == "fail"} == faults, job.log
    assert "to be fixed before training: code, devices, shared folder, loader" in job.log
    assert not (run / "config.json").exists(), "it trained all the same"


def test_a_requeued_job_is_one_mlflow_run(
    cluster: Cluster, digits: Path, reference: dict[int, float], tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    variables = {"VIT_MLFLOW": "on", "MLFLOW_TRACKING_URI": uri}
    job = submit(cluster, digits, tmp_path, "tracked", **variables)
    wait_for_step(job, FAULT_STEP)
    requeue(cluster, job)
    assert cluster.wait(job.id, timeout=400) == "COMPLETED", job.log
    assert len(starts(job.run)) == 2
    client, record = MlflowClient(uri), records.read_record(job.run)
    assert record is not None
    experiment = client.get_experiment_by_name(record.experiment)
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1
    run = only_run(client, job.run)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == sorted(reference), "each step's loss, once"
    assert {point.step: shown(point.value) for point in history} == {
        step: shown(loss) for step, loss in reference.items()
    }
    assert [attempt.place["slurm_job"] for attempt in record.attempts] == [job.id, job.id]
    print(f"one MLflow run, {len(history)} losses, starts {starts(job.run)}")


def test_a_killed_task_of_a_shard_array(cluster: Cluster, raw_digits: Path, digits: Path, tmp_path: Path) -> None:
    """The array's merge gives the bytes that one process gives."""
    began = time.monotonic()
    arguments = ("--name", "digits", "--val-fraction", 0.25, "--samples-per-shard", 256)
    options = ("--array=0-3", "--cpus-per-task=1", "--mem=2G", f"--output={tmp_path}/%x-%a.out")
    job = cluster.submit("shard.sh", raw_digits, tmp_path / "digits", *arguments, options=options)
    limit = time.monotonic() + 60
    killed = ""
    while not killed and time.monotonic() < limit:
        for record in cluster.jobs(job):
            if record["JobState"] == "RUNNING" and record["ArrayTaskId"] == "2":
                pattern = "^[^ ]*python -m data_prep.shard .*--task 2 "  # srun puts python's whole path there
                found = cluster.call("on", record["NodeList"], "pgrep", "-f", pattern, check=False)
                if found:
                    cluster.call("on", record["NodeList"], "kill", "-KILL", found.splitlines()[0])
                    killed = found
    assert killed
    limit = time.monotonic() + 120
    while not (tmp_path / "digits" / "dataset.json").is_file():
        assert time.monotonic() < limit, "\n".join(path.read_text() for path in tmp_path.glob("*.out"))
        time.sleep(0.5)
    assert any("requeueing" in path.read_text() for path in tmp_path.glob("*.out"))
    jobs = cluster.run("scontrol", "-o", "show", "job").splitlines()
    merge = next(record for record in jobs if "-finalize " in record)
    assert "MinMemoryNode=2G" in merge, "it has the array's memory"
    for tar in sorted(digits.glob("*.tar")):
        assert tar.read_bytes() == (tmp_path / "digits" / tar.name).read_bytes()
    print(f"shard array with a killed task: {time.monotonic() - began:.0f} s")
