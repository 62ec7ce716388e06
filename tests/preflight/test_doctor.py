"""jobs.doctor: each fault is found, blamed on the right node, and has a remedy; the measurements on real ranks."""

import dataclasses
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.doctor import parse, table
from pipeline.core.errors import UserError
from pipeline.preflight import measurements
from pipeline.preflight.plan import needed
from pipeline.preflight.verdicts import Demand, Facts, Verdict, judge
from tests.helpers.ranks import Ranks, run_ranks

GOLDEN = Path(__file__).with_name("golden") / "doctor.txt"

GOOD = Facts(
    rank=0, host="node1", device="cuda", device_name="GPU", gpus_given=2, local_ranks=2, cpus=12, code="abc",
    packages={"torch": "2.9"}, skew=0.001, rendezvous=3.0, sum_is_right=True, bus=2e11, gemm=7e14, sees_folder=True,
    folder_fault="", write=2e9, open=0.001, free_bytes=10**12, free_inodes=10**7, loader=3000.0, loader_fault="",
    region_decoder=True,
)  # fmt: skip
NEED = Demand(
    recipe="pretrain l16", workers=8, checkpoint_bytes=4 * 10**9, checkpoints=3, files=22, flops_per_image=3.7e11
)


def four(**changes: object) -> list[Facts]:
    """Two nodes of two ranks; ``changes`` hit the last rank, on node2."""
    facts = [dataclasses.replace(GOOD, rank=rank, host=f"node{1 + rank // 2}") for rank in range(4)]
    facts[3] = dataclasses.replace(facts[3], **changes)  # type: ignore[arg-type]
    return facts


def test_a_good_cluster_has_no_fault() -> None:
    assert {verdict.state for verdict in judge(four(), NEED)} == {"ok"}


@pytest.mark.parametrize(
    ("check", "state", "changes", "hosts"),
    [
        ("ranks", "warn", {"host": "node1"}, ()),
        ("code", "fail", {"code": "other"}, ("node2",)),
        ("packages", "fail", {"packages": {"torch": "2.8"}}, ("node2",)),
        ("clocks", "warn", {"skew": 3.0}, ("node2",)),
        ("all-reduce", "fail", {"sum_is_right": False}, ("node2",)),
        ("bandwidth", "warn", {"bus": 1e9}, ()),
        ("devices", "fail", {"gemm": 5e14}, ("node2",)),
        ("devices", "fail", {"device": "cpu"}, ("node2",)),
        ("CPUs", "warn", {"cpus": 4}, ("node2",)),
        ("shared folder", "fail", {"sees_folder": False}, ("node2",)),
        ("shared folder", "fail", {"folder_fault": "x cannot be written"}, ("node2",)),
        ("storage", "warn", {"write": 1e6}, ("node2",)),
        ("storage", "warn", {"open": 0.2}, ("node2",)),
        ("space", "fail", {"free_bytes": 10**9}, ()),
        ("space", "fail", {"free_inodes": 1021}, ()),  # 1,000 and the plan's 22
        ("loader", "warn", {"loader": 100.0}, ("node2",)),
        ("loader", "warn", {"region_decoder": False}, ("node2",)),
        ("loader", "fail", {"loader": 0.0, "loader_fault": "data.train '/data' does not exist"}, ("node2",)),
    ],
)
def test_each_fault(check: str, state: str, changes: dict[str, object], hosts: tuple[str, ...]) -> None:
    verdicts = {verdict.check: verdict for verdict in judge(four(**changes), NEED)}
    bad = {name for name, verdict in verdicts.items() if verdict.state != "ok"}
    assert bad == {check}
    assert (verdicts[check].state, verdicts[check].hosts) == (state, hosts)
    assert verdicts[check].remedy


def test_the_slow_device_is_named_with_its_share() -> None:
    verdict = next(verdict for verdict in judge(four(gemm=3.5e14), NEED) if verdict.check == "devices")
    assert "rank 3 on node2: 50%" in verdict.figure


def test_gpus_that_torch_does_not_see() -> None:
    blind = [dataclasses.replace(fact, device="cpu", device_name="CPU", bus=2e9) for fact in four()]
    verdict = next(verdict for verdict in judge(blind, NEED) if verdict.check == "devices")
    assert (verdict.state, verdict.hosts) == ("fail", ("node1", "node2"))
    assert "Slurm gave 2 GPU(s) per node, but torch sees none" in verdict.figure
    without = [dataclasses.replace(fact, gpus_given=0) for fact in blind]
    assert {verdict.state for verdict in judge(without, NEED)} == {"ok"}


def test_file_systems_that_count_no_inodes_have_enough() -> None:
    verdict = next(verdict for verdict in judge(four(free_inodes=-1), NEED) if verdict.check == "space")
    assert verdict.state == "ok"


@pytest.mark.parametrize("world", [2, 182, 1024, 16_384])
def test_the_sum_of_many_ranks_is_exact_in_any_order(world: int) -> None:
    """The all-reduce is judged by equality, and nobody knows in which order a network adds up."""
    factors = np.array([measurements.reduce_factor(rank) for rank in range(world)], np.float32)
    expected = int(factors.sum(dtype=np.int64)) * (measurements.REDUCE_LARGEST - 1)
    for order in (np.arange(world), np.random.default_rng(0).permutation(world)):
        total = np.float32(0)
        for factor in factors[order]:
            total += factor * np.float32(measurements.REDUCE_LARGEST - 1)
        assert total == expected


def show(verdicts: list[Verdict]) -> str:
    text = io.StringIO()
    Console(file=text, width=150).print(table(verdicts))
    return text.getvalue()


def test_the_table_word_for_word() -> None:
    """A good cluster, then each fault. UPDATE_GOLDEN=yes pytest writes the file anew."""
    faults: tuple[dict[str, object], ...] = (
        {
            "host": "node3",
            "code": "other",
            "packages": {"torch": "2.8"},
            "skew": 3.0,
            "sum_is_right": False,
            "bus": 1e9,
        },
        {"gemm": 5e14, "cpus": 4, "sees_folder": False, "write": 1e7, "open": 0.2, "free_inodes": 5, "loader": 100.0},
        {"device": "cpu", "folder_fault": "/work cannot be written: Permission denied", "free_bytes": 10**9},
        {"write": 0.0, "loader_fault": "data.train '/data' does not exist", "local_ranks": 3},
    )
    tables = [show(judge(four(), NEED)), *(show(judge(four(**changes), NEED)) for changes in faults)]
    text = "\n".join(re.sub(r" +$", "", part, flags=re.MULTILINE) for part in tables)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_the_job_s_own_fields_are_looked_at() -> None:
    fields = ("--data.workers", "5", "--data.eval-resize", "central", "--checkpoint.keep-last", "7")
    config, plan = parse(["l16", "--stage", "finetune", "--folder", "runs", "--", "--optim.lr", "0.01", *fields])
    assert (config.folder, plan.stage if plan else "") == (Path("runs"), "finetune")
    assert plan is not None
    assert (plan.data.workers, plan.data.eval_resize, plan.optim.lr) == (5, "central", 0.01)
    need = needed(plan, ranks=16)
    # 304 million weights, SGD's one moment, float32
    assert (need.workers, need.checkpoints, need.files) == (5, 8, 8 * 18 + 16)
    assert need.checkpoint_bytes == pytest.approx(2 * 4 * 304.4e6, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "shards"), "RECIPE"),
        (("--", "--optim.lr", "1"), "RECIPE"),
        (("l16", "--", "--optim.lr", "high"), "--optim.lr"),
        (("l17",), "did you mean l16"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(list(arguments))


def test_without_a_recipe_nothing_is_asked_of_the_loader() -> None:
    assert {verdict.state for verdict in judge(four(cpus=1, loader=0.0), Demand())} == {"ok"}


def test_two_ranks_measure_themselves(digits: Path, tmp_path: Path) -> None:
    command = ("-m", "jobs.doctor", "tiny", "--folder", tmp_path / "runs", "--data", digits, "--json")
    run_ranks(2, (*command, "--", "--data.workers", 1), tmp_path / "logs", timeout=200)
    rows = [json.loads(line) for line in (tmp_path / "logs" / "rank0.log").read_text().splitlines() if line[:1] == "{"]
    found = {row["check"]: row for row in rows}
    for check in ("ranks", "code", "packages", "all-reduce", "shared folder", "space"):
        assert found[check]["state"] == "ok", found[check]
    assert "2 rank(s) on 1 node(s)" in found["ranks"]["figure"]
    assert re.match(r"[\d,]+ img/s per rank, about [\d,]+ needed by pretrain tiny", found["loader"]["figure"])
    assert "1 data loader worker(s)" in found["CPUs"]["figure"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []  # nothing is left behind


def test_a_folder_that_cannot_be_written_fails_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = ("-m", "jobs.doctor", "--folder", tmp_path / "file" / "runs")
    with Ranks(1, command, tmp_path / "logs") as ranks:
        (finished,) = ranks.wait(200)
    assert finished.code == 1
    assert "to be fixed before training: shared folder" in finished.output
    assert "Traceback" not in finished.output
