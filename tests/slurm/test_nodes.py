"""slurm/nodes.sh: which nodes are taken for the next attempt, and who is blamed for the last. No Slurm."""

from pathlib import Path

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


def fail(folder: Path, *nodes: str, events: str = "") -> None:
    """Failures of nodes in this run, and what attempts.tsv holds: ``events`` as "event detail, ..."."""
    (folder / "slurm").mkdir(exist_ok=True)
    (folder / "slurm" / "bad-nodes.tsv").write_text("".join(f"{node}\t7\t0\t1\tx\n" for node in nodes))
    rows = [event.split() for event in events.split(", ") if event]
    (folder / "slurm" / "attempts.tsv").write_text("".join(f"{e}\t7\t0\t0\t9\t{what}\n" for e, what in rows))


def test_all_nodes_without_an_option_at_first(tmp_path: Path) -> None:
    fail(tmp_path, "b")
    assert sourced(tmp_path, SCONTROL, "first_nodes", TAKEN, **JOB) == "3 \n"


def test_the_same_nodes_again(tmp_path: Path) -> None:
    """With --overlap: the failed step may still hold its resources on a node that doesn't answer."""
    fail(tmp_path, "b")
    assert sourced(tmp_path, SCONTROL, "UP=(a b c)", "next_nodes", TAKEN, **JOB) == "3 --nodelist=a,b,c --overlap\n"


def test_too_few_nodes_are_left(tmp_path: Path) -> None:
    fail(tmp_path)
    assert sourced(tmp_path, SCONTROL, "UP=(a c)", "next_nodes || echo no", **JOB) == "no\n"
    fail(tmp_path, "b", "b")
    assert sourced(tmp_path, SCONTROL, "UP=(a b c)", "next_nodes || echo no", **JOB) == "no\n"


def blamed(folder: Path) -> list[str]:
    rows = [line.split("\t") for line in (folder / "slurm" / "bad-nodes.tsv").read_text().splitlines()]
    return [row[0] for row in rows]


def test_a_node_that_does_not_answer_is_blamed_before_the_first_rank_that_failed(tmp_path: Path) -> None:
    fail(tmp_path, events="start a,b,c, end failed")
    (tmp_path / "slurm" / "failed").write_text("a 0 1\n")
    printed = sourced(tmp_path, SCONTROL, "UP=(a c)", "blame_nodes", **JOB)
    assert "node b: lost in attempt 1" in printed
    assert blamed(tmp_path) == ["b"]
    assert (tmp_path / "slurm" / "attempts.tsv").read_text().splitlines()[-1].endswith("\tlost")
    assert sourced(tmp_path, SCONTROL, "blame_nodes", **JOB) == "", "blamed once"


def test_the_first_rank_that_failed_is_blamed_once(tmp_path: Path) -> None:
    fail(tmp_path, events="start a,b,c, end failed")
    (tmp_path / "slurm" / "failed").write_text("c 2 137\n")
    printed = sourced(tmp_path, SCONTROL, "UP=(a b c)", "blame_nodes", "blame_nodes", **JOB)
    assert printed.count("node c: rank 2 was the first to fail in attempt 1, with exit code 137") == 1
    assert blamed(tmp_path) == ["c"]


def test_a_node_that_slurm_calls_down_is_lost(tmp_path: Path) -> None:
    """After a requeue, when no node has been asked."""
    fail(tmp_path, events="start a,b,c")
    sourced(tmp_path, SCONTROL, "blame_nodes", STATES="a IDLE\nb DOWN+NOT_RESPONDING\nc ALLOCATED", **JOB)
    assert blamed(tmp_path) == ["b"]


def test_a_node_is_left_once(tmp_path: Path) -> None:
    fail(tmp_path, "b", "b", events="start a,b,c, end failed")
    sourced(tmp_path, SCONTROL, "note_left_nodes a,b,c yes", "note_left_nodes a,b,c yes", **JOB)
    left = [line for line in (tmp_path / "slurm" / "attempts.tsv").read_text().splitlines() if line[:5] == "leave"]
    assert len(left) == 1
    assert left[0].endswith("\tb")
