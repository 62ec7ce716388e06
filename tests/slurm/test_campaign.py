"""The whole campaign on the cluster, twice: raw tars to an exported model, and nothing left to do."""

import json
import sys
import time
from pathlib import Path

import pytest

from pipeline.runs.overview import collect
from tests.slurm.cluster import REPO, Cluster

STAGES = {
    "data-in21k": ("shard", "merge", "verify"),
    "data-in1k": ("shard", "merge", "verify"),
    "tiny": ("pretrain", "finetune", "pick", "evaluate", "export"),
}
TRAINING = "--train.global-batch 16 --train.micro-batch 8 --data.workers 1 --data.flip False"
SMALL = "--time=30 --cpus-per-task=1"


def submit_all(cluster: Cluster, work: Path, raw: Path, rates: str = "0.003 0.03") -> str:
    return cluster.run(
        REPO / "slurm" / "submit_all.sh", "tiny", "--raw", raw, "--in1k", raw,
        "--shard", "--val-fraction 0.25 --samples-per-shard 256", "--shard-sbatch", f"--array=0-1 {SMALL}",
        "--merge-sbatch", SMALL, "--verify-sbatch", SMALL, "--pick-sbatch", SMALL, "--export-sbatch", SMALL,
        "--pretrain", f"{TRAINING} --schedule.steps 30", "--finetune", f"{TRAINING} --schedule.steps 20",
        GPUS_PER_NODE="2", CPUS_PER_GPU="1", WHOLE_NODES="no",
        VIT_WORK=str(work), FINETUNE_LRS=rates, DOCTOR="no", VIT_MLFLOW="off", TORCHDYNAMO_DISABLE="1",
    )  # fmt: skip


def rows_on(cluster: Cluster, *folders: Path) -> dict[str, dict[str, object]]:
    """What jobs.status shows on the login machine, by row."""
    command = (sys.executable, "-m", "jobs.status", "--json", "-", *folders)
    lines = cluster.run(*command, PYTHONPATH=str(REPO)).splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def wait(cluster: Cluster, campaigns: Path) -> None:
    """Until every stage's job has ended well."""
    for folder, stages in STAGES.items():
        for stage in stages:
            job = (campaigns / folder / f"{stage}.job").read_text().split()[0]
            state = cluster.wait(job, timeout=400)
            logs = "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in campaigns.glob(f"*/{stage}*.out"))
            assert state == "COMPLETED", f"{folder}/{stage} is {state}:\n{logs}"


@pytest.mark.slurm
@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_a_campaign_twice(cluster: Cluster, raw_digits: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    first = submit_all(cluster, tmp_path, raw_digits)
    assert first.count("submitted job") == sum(map(len, STAGES.values())), first
    again = submit_all(cluster, tmp_path, raw_digits)
    assert "submitted" not in again, again
    campaigns = tmp_path / "campaigns"
    waiting = rows_on(cluster, campaigns)
    assert len(waiting) == len(STAGES["data-in21k"]) + len(STAGES["data-in1k"]) + len(STAGES["tiny"]), waiting
    assert (waiting["tiny/pick"]["state"], waiting["tiny/pick"]["note"]) == ("pending", "Dependency")
    wait(cluster, campaigns)
    best = (campaigns / "tiny" / "best").resolve()
    assert best.parent == tmp_path / "runs"
    assert best.name in ("finetune-tiny-lr0.003", "finetune-tiny-lr0.03")
    (log,) = (campaigns / "tiny").glob("evaluate-tiny-*.out")
    result = json.loads(next(line for line in log.read_text().splitlines() if line.startswith("{")))
    assert result["step"] == 20
    assert any((campaigns / "tiny" / "timm").iterdir())
    rows = collect((campaigns, tmp_path / "runs"), {}, time.time())
    assert {row.state for row in rows} == {"done", "finished"}, rows
    print(f"campaign: {time.monotonic() - began:.0f} s")

    third = submit_all(cluster, tmp_path, raw_digits)
    assert third.count(": done") == sum(map(len, STAGES.values())), third
    (campaigns / "tiny" / "evaluate.done").unlink()  # as if it had failed
    assert submit_all(cluster, tmp_path, raw_digits).count("submitted job") == 1
    wait(cluster, campaigns)

    more = submit_all(cluster, tmp_path, raw_digits, rates="0.003 0.03 0.01")
    resubmitted = {line.split(":")[0] for line in more.splitlines() if "submitted job" in line}
    assert resubmitted == {"tiny/finetune", "tiny/pick", "tiny/evaluate", "tiny/export"}, more
    wait(cluster, campaigns)
    assert (tmp_path / "runs" / "finetune-tiny-lr0.01" / "status.json").is_file()
    assert len(list((campaigns / "tiny").glob("timm*"))) == 2, "the export before is kept"
    print(f"and with another learning rate: {time.monotonic() - began:.0f} s")
