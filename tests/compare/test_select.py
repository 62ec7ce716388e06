"""Selection: the best of several runs, and what it refuses."""

import json
from pathlib import Path

import pytest

from jobs import pick
from pipeline.compare.select import best, point, read_scores, select
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.runs.folder import Status, write_status


def make_run(folder: Path, name: str, state: str = "finished", **metrics: float) -> Path:
    run = folder / name
    run.mkdir()
    named = {key.replace("_", "/", 1): value for key, value in metrics.items()}
    write_status(run, Status(state, 20, 20, 1, 0.0, named))  # type: ignore[arg-type]
    return run


def test_the_best_is_named_and_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        make_run(tmp_path, "lr0.003", eval_top1=0.7),
        make_run(tmp_path, "lr0.03", eval_top1=0.9),
        make_run(tmp_path, "lr0.06", state="failed", eval_top1=0.95),
    ]
    link = tmp_path / "best"
    for _ in range(2):  # again, over its own link
        monkeypatch.setattr("sys.argv", ["pick", *map(str, runs), "--link", str(link)])
        assert pick.main() == 0
        output = capsys.readouterr().out.splitlines()
        assert json.loads(output[-1]) == {"best": str(runs[1]), "by": "eval/top1", "score": 0.9}
        assert output[2] == f"{runs[2]}: failed, skipped"
        assert link.is_symlink()
        assert link.resolve() == runs[1].resolve()


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_an_unfinished_run_stops_the_choice(tmp_path: Path, state: str) -> None:
    run = make_run(tmp_path, "a", state=state, eval_top1=0.9)
    with pytest.raises(UserError, match=f"is not finished .{state}.: start it again"):
        read_scores([run], "eval/top1")


def test_what_cannot_be_picked_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not started"):
        read_scores([tmp_path], "eval/top1")
    with pytest.raises(UserError, match=r"no metric --by 'eval/top1' .it has train.loss.: give its dataset"):
        read_scores([make_run(tmp_path, "a", train_loss=1.0)], "eval/top1")
    with pytest.raises(UserError, match="none of the 1 runs finished"):
        best({tmp_path: None}, "eval/top1")
    assert best({tmp_path / "a": float("nan"), tmp_path / "b": 0.1}, "eval/top1") == tmp_path / "b"
    assert best({tmp_path / "a": 0.2, tmp_path / "b": 0.1}, "eval/loss") == tmp_path / "b"


def test_scores_of_different_data_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [make_run(tmp_path, name, eval_top1=0.5) for name in ("a", "b")]
    for digests, said in ((("1", "1"), False), (("1", "2"), True)):
        for run, digest in zip(runs, digests, strict=True):
            write_json(run / "run.json", {"eval_digest": digest})
        caplog.clear()
        assert select(runs, "eval/top1").best == runs[0]
        warning = "the runs were evaluated on different data, so their scores are not comparable (a: 1, b: 2)"
        assert caplog.messages == ([warning] if said else [])


def test_a_folder_is_not_replaced_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    with pytest.raises(UserError, match="exists and is not a symbolic link"):
        point(tmp_path / "best", tmp_path)
