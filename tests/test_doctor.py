"""jobs.doctor: each fault is found, blamed on the right node, and has a remedy; the measurements on real ranks."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.health import Facts, Need, judge
from tests.ranks import Ranks, run_ranks

GOOD = Facts(
    rank=0, host="node1", device="cuda", device_name="GPU", local_ranks=2, cpus=12, code="abc",
    packages={"torch": "2.9"}, skew=0.001, rendezvous=3.0, sum_is_right=True, bus=2e11, gemm=7e14, sees_folder=True,
    folder_fault="", write=2e9, open=0.001, free_bytes=10**12, free_inodes=10**7, loader=3000.0,
)  # fmt: skip
NEED = Need(
    recipe="pretrain l16", workers=8, checkpoint_bytes=4 * 10**9, checkpoints=3, flops_per_image=3.7e11, efficiency=0.4
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
        ("space", "fail", {"free_inodes": 5}, ()),
        ("loader", "warn", {"loader": 100.0}, ("node2",)),
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


def test_without_a_recipe_nothing_is_asked_of_the_loader() -> None:
    assert {verdict.state for verdict in judge(four(cpus=1, loader=0.0), Need())} == {"ok"}


@pytest.mark.timeout(240)
def test_two_ranks_measure_themselves(tmp_path: Path) -> None:
    run_ranks(2, ("-m", "jobs.doctor", "tiny", "--folder", tmp_path / "runs", "--json"), tmp_path / "logs", timeout=200)
    rows = [json.loads(line) for line in (tmp_path / "logs" / "rank0.log").read_text().splitlines() if line[:1] == "{"]
    found = {row["check"]: row for row in rows}
    for check in ("ranks", "code", "packages", "all-reduce", "shared folder", "space"):
        assert found[check]["state"] == "ok", found[check]
    assert "2 rank(s) on 1 node(s)" in found["ranks"]["figure"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []  # nothing is left behind


@pytest.mark.timeout(240)
def test_a_folder_that_cannot_be_written_fails_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = ("-m", "jobs.doctor", "--folder", tmp_path / "file" / "runs")
    with Ranks(1, command, tmp_path / "logs") as ranks:
        (finished,) = ranks.wait(200)
    assert finished.code == 1
    assert "to be mended before training: shared folder" in finished.output
    assert "Traceback" not in finished.output
