"""slurm/nodes.sh: which nodes are taken for the next attempt, and who is blamed for the last. No Slurm."""

from pathlib import Path

import pytest

from pipeline.config.schema import TrainConfig, accumulation
from pipeline.core.files import write_json
from tests.slurm.scripts import sourced

# scontrol's part in it, for names without ranges
SCONTROL = """scontrol() {
  case "$1 $2" in
    "show hostnames") tr , '\\n' <<<"$3" ;;
    "show hostlist") echo "$3" ;;
    "show node") echo "NodeName=$3 State=$(sed -n "s/^$3 //p" <<<"${STATES:-}")" ;;
  esac
}"""
JOB = {"SLURM_JOB_NODELIST": "a,b,c", "SLURM_JOB_NUM_NODES": "3"}
TAKEN = 'echo "$NODES ${PLACE[*]}"'


def printed_by(folder: Path, *lines: str, **environment: str) -> str:
    return sourced(folder, SCONTROL, *lines, **environment)  # type: ignore[arg-type]  # none of them is "code"


def fail(folder: Path, *nodes: str, events: str = "") -> None:
    """Failures of nodes in this run, and what attempts.tsv holds: ``events`` as "event detail, ..."."""
    (folder / "slurm").mkdir(exist_ok=True)
    (folder / "slurm" / "bad-nodes.tsv").write_text("".join(f"{node}\t7\t0\t1\tx\n" for node in nodes))
    rows = [event.split() for event in events.split(", ") if event]
    (folder / "slurm" / "attempts.tsv").write_text("".join(f"{e}\t7\t0\t0\t9\t{what}\n" for e, what in rows))


def test_all_nodes_without_an_option_at_first(tmp_path: Path) -> None:
    fail(tmp_path, "b")
    assert printed_by(tmp_path, "first_nodes", TAKEN, **JOB) == "3 \n"


def test_the_same_nodes_again(tmp_path: Path) -> None:
    """With --overlap: the failed step may still hold its resources on a node that doesn't answer."""
    fail(tmp_path, "b")
    assert printed_by(tmp_path, "UP=(a b c)", "next_nodes x", TAKEN, **JOB) == "3 --nodelist=a,b,c --overlap\n"


def test_too_few_nodes_are_left(tmp_path: Path) -> None:
    fail(tmp_path)
    assert printed_by(tmp_path, "UP=(a c)", "next_nodes x || echo no", **JOB) == "no\n"
    fail(tmp_path, "b", "b")
    assert printed_by(tmp_path, "UP=(a b c)", "next_nodes x || echo no", **JOB) == "no\n"


def blamed(folder: Path) -> list[str]:
    rows = [line.split("\t") for line in (folder / "slurm" / "bad-nodes.tsv").read_text().splitlines()]
    return [row[0] for row in rows]


def test_a_node_that_does_not_answer_is_blamed_before_the_first_rank_that_failed(tmp_path: Path) -> None:
    fail(tmp_path, events="start a,b,c, end failed")
    (tmp_path / "slurm" / "failed").write_text("a 0 1\n")
    printed = printed_by(tmp_path, "UP=(a c)", "blame_nodes", **JOB)
    assert "node b: lost in attempt 1" in printed
    assert blamed(tmp_path) == ["b"]
    assert (tmp_path / "slurm" / "attempts.tsv").read_text().splitlines()[-1].endswith("\tlost")
    assert printed_by(tmp_path, "blame_nodes", **JOB) == "", "blamed once"


def test_the_first_rank_that_failed_is_blamed_once(tmp_path: Path) -> None:
    fail(tmp_path, events="start a,b,c, end failed")
    (tmp_path / "slurm" / "failed").write_text("c 2 137\n")
    printed = printed_by(tmp_path, "UP=(a b c)", "blame_nodes", "blame_nodes", **JOB)
    assert printed.count("node c: rank 2 was the first to fail in attempt 1, with exit code 137") == 1
    assert blamed(tmp_path) == ["c"]


def test_a_node_that_slurm_calls_down_is_lost(tmp_path: Path) -> None:
    """After a requeue, when no node has been asked."""
    fail(tmp_path, events="start a,b,c")
    printed_by(tmp_path, "blame_nodes", STATES="a IDLE\nb DOWN+NOT_RESPONDING\nc ALLOCATED", **JOB)
    assert blamed(tmp_path) == ["b"]


def test_a_node_is_left_once(tmp_path: Path) -> None:
    fail(tmp_path, "b", "b", events="start a,b,c, end failed")
    printed_by(tmp_path, "note_left_nodes a,b,c yes", "note_left_nodes a,b,c yes", **JOB)
    left = [line for line in (tmp_path / "slurm" / "attempts.tsv").read_text().splitlines() if line[:5] == "leave"]
    assert len(left) == 1
    assert left[0].endswith("\tb")


def test_a_spare_replaces_a_lost_node(tmp_path: Path) -> None:
    fail(tmp_path)
    job = JOB | {"SPARE_NODES": "1"}
    printed = printed_by(tmp_path, "first_nodes", TAKEN, "UP=(a c)", "next_nodes x", TAKEN, **job)
    assert printed == "2 --nodelist=a,b\n2 --nodelist=a,c --overlap\n"


def test_a_job_begins_without_the_node_that_failed_twice_if_it_has_a_spare(tmp_path: Path) -> None:
    fail(tmp_path, "a", "a")
    assert printed_by(tmp_path, "first_nodes", TAKEN, **JOB, SPARE_NODES="1") == "2 --nodelist=b,c\n"


def configured(folder: Path, *, global_batch: int, micro_batch: int) -> None:
    write_json(folder / "config.json", {"train": {"global_batch": global_batch, "micro_batch": micro_batch}})


def test_fewer_nodes_than_wanted(tmp_path: Path) -> None:
    """Three nodes of two ranks don't divide a batch of 16: two of them do, with the same micro-batch."""
    fail(tmp_path)
    configured(tmp_path, global_batch=16, micro_batch=2)
    job = {"SLURM_JOB_NODELIST": "a,b,c,d", "SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_TASKS_PER_NODE": "2(x4)"}
    lines = ("UP=(a c d)", "next_nodes x", TAKEN, 'echo "${MICRO_BATCH[*]} ($FEWER_NODES)"')
    warning, taken, options = printed_by(tmp_path, *lines, **job).splitlines()
    assert "warning: 3 usable nodes: training on 2 of 4 nodes until the next requeue" in warning
    assert (taken, options) == ("2 --nodelist=a,c --overlap", "--train.micro-batch 2 (2 of 4 nodes)")
    assert printed_by(tmp_path, "UP=(a c d)", "next_nodes x || echo no", **job, ELASTIC="no") == "no\n"
    # all nodes answer again
    again = ("UP=(a c d)", "next_nodes x", "UP=(a b c d)", *lines[1:])
    assert printed_by(tmp_path, *again, **job).splitlines()[1:] == ["4 --nodelist=a,b,c,d --overlap", " ()"]


@pytest.mark.parametrize(
    ("nodes", "ranks", "global_batch", "micro_batch", "fitting"),
    [
        (7, 8, 4096, 64, "4 64"),  # twice the accumulation
        (6, 8, 1536, 32, "6 32"),
        (3, 2, 24, 8, "3 4"),  # 8 doesn't divide the 4 of each rank
        (2, 1, 12, 4, "2 2"),  # 6 a rank: 3 divides it too, but pairs must stay together
        (2, 1, 6, 2, "1 2"),  # 3 a rank: no even micro-batch
        (2, 1, 6, 3, "2 3"),
        (1, 8, 4, 1, ""),
        (4, 8, 0, 64, ""),  # no config.json yet
    ],
)
def test_the_most_nodes_whose_ranks_divide_the_batch(
    tmp_path: Path, nodes: int, ranks: int, global_batch: int, micro_batch: int, fitting: str
) -> None:
    assert sourced(tmp_path, f"fit {nodes} {ranks} {global_batch} {micro_batch} || true").strip() == fitting
    if fitting:
        size, micro = map(int, fitting.split())
        accumulation(
            TrainConfig(global_batch=global_batch, micro_batch=micro), size * ranks
        )  # raises if it doesn't fit
