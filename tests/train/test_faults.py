"""Real ranks that meet a fault: none passes in silence, and none leaves a rank waiting."""

import json
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipeline.checkpoint import format as checkpoint
from pipeline.dataset.index import split_keys
from pipeline.dataset.joined_split import open_split
from pipeline.runs import records
from pipeline.runs.folder import METRICS, RECORD, read_status
from tests.helpers.jobs import SHORT_STEPS, job
from tests.helpers.ranks import Finished, Ranks, run_ranks

HOST = socket.gethostname()


def meet(fault: str, rank: int, step: int, folder: Path, *command: object) -> list[Finished]:
    """Two ranks, of which ``rank`` meets the fault; all must leave within two minutes."""
    with Ranks(2, ("-m", "tests.train.faulty", fault, rank, step, *command), folder / f"log-{fault}") as ranks:
        return ranks.wait(120)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (1, "float32"), (2, "bfloat16"), (3, "float32")])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(
    digits: Path, tmp_path: Path, stage: int, dtype: str
) -> None:
    run = tmp_path / "run"
    options = ("--train.zero-stage", stage, "--train.dtype", dtype)
    first, second = meet("nan", 1, 5, tmp_path, *job(run, digits, *options))
    assert first.code == second.code == 1
    for output in (first.output, second.output):
        assert f"step 5: loss nan, gradient norm {'nan' if stage == 0 else ''}" in output
        assert f"rank 1 on {HOST} (loss nan)" in output
        assert "optim.lr" in output
    (kept,) = (run / "nonfinite").iterdir()
    assert kept.name == "step-00000005-rank-001.safetensors"
    with safe_open(kept, framework="pt") as file:
        rows, images, keys = file.get_tensor("samples_B"), file.get_tensor("images_BHWC"), file.metadata()["keys"]
    assert images.shape == (8, 16, 16, 3)
    assert images.dtype == torch.uint8
    assert keys.split("\n") == [split_keys(digits, "train")[row] for row in rows]
    assert keys.replace("\n", ", ") in second.output
    labels = open_split(digits, "train").label[rows]
    assert [int(key.removeprefix("digit").partition("_")[0]) for key in keys.split("\n")] == labels.tolist()
    status = read_status(run)
    assert status is not None
    assert (status.state, status.step) == ("failed", 5)
    assert [path.name for path in checkpoint.complete(run)] == [checkpoint.folder_name(3)]


@pytest.mark.parametrize(("fault", "stage", "dtype"), [("nan", 0, "float32"), ("gradient", 3, "bfloat16")])
def test_a_step_may_be_left_out_and_is_counted(
    digits: Path, tmp_path: Path, fault: str, stage: int, dtype: str
) -> None:
    run = tmp_path / "run"
    options = (
        "--train.zero-stage",
        stage,
        "--train.dtype",
        dtype,
        "--checkpoint.every",
        1,
        "--checkpoint.keep-last",
        9,
    )
    command = job(run, digits, *options, "--train.skip-nonfinite", 1)
    finished = meet(fault, 0, 5, tmp_path, *command)
    assert [rank.code for rank in finished] == [0, 0], finished[0].output
    assert "the step is skipped, 1 so far" in finished[0].output
    saved = checkpoint.complete(run)
    before, after, later = (dict(checkpoint.State(saved[step - 1])) for step in (4, 5, 6))
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), f"{key} changed in a step that was skipped"
    assert any(not torch.equal(tensor, later[key]) for key, tensor in after.items())
    assert all(bool(tensor.isfinite().all()) for tensor in later.values())
    meta = checkpoint.read_meta(saved[-1])
    assert (meta.step, meta.skipped, meta.optimizer_steps) == (SHORT_STEPS, 1, SHORT_STEPS - 1)
    assert (run / "nonfinite" / "step-00000005-rank-000.safetensors").exists()
    if fault == "gradient":
        assert "all ranks' losses are finite" in finished[0].output


def test_what_an_earlier_attempt_left_out_counts_towards_the_limit(digits: Path, tmp_path: Path) -> None:
    """... also the very first step, after which there are neither moments nor an average to save; with a large seed."""
    command = job(tmp_path / "run", digits, "--train.skip-nonfinite", 1, "--checkpoint.background", False)
    command = (*command, "--checkpoint.every", 1, "--schedule.steps", 1000, "--checkpoint.keep-last", 9)
    command = (*command, "--train.average", 0.8, "--train.seed", 2**32 + 5)
    with Ranks(2, ("-m", "tests.train.faulty", "nan", 0, 1, *command), tmp_path / "first") as ranks:
        ranks.wait_for("step 4/", 120)  # written before: not in the background here
    first, *_, saved = checkpoint.complete(tmp_path / "run")
    assert checkpoint.read_meta(saved).skipped == 1
    assert {key.partition("/")[0] for key in checkpoint.State(first)} == {"param"}
    assert {key.partition("/")[0] for key in checkpoint.State(saved)} == {"param", "exp_avg", "exp_avg_sq", "average"}
    finished = meet("nan", 0, 1, tmp_path, *command)
    assert finished[0].code == 1
    assert "2 so far, train.skip_nonfinite 1" in finished[0].output


@pytest.mark.parametrize(
    ("fault", "stage", "dtype"), [("nan", 0, "float32"), ("nan", 2, "float32"), ("gradient", 3, "bfloat16")]
)
def test_a_run_may_go_back_to_its_last_checkpoint(
    digits: Path, tmp_path: Path, fault: str, stage: int, dtype: str
) -> None:
    """The weights of step 4 stand again after step 6, and the run ends as any other; the same with each repetition."""
    options = ("--train.zero-stage", stage, "--train.dtype", dtype, "--checkpoint.every", 2)
    options += ("--checkpoint.keep-last", 9, "--train.rollback-nonfinite", 1, "--train.average", 0.8)
    states = []
    for name in ("run", "again"):
        run = tmp_path / name
        finished = meet(fault, 1, 6, tmp_path / f"logs-{name}", *job(run, digits, *options))
        assert [rank.code for rank in finished] == [0, 0], finished[0].output
        assert "back to the weights of step 4, 2 steps are undone (roll-back 1 of 1)" in finished[0].output
        saved = checkpoint.complete(run)
        assert [checkpoint.read_meta(path).step for path in saved] == [2, 4, 6, 8]
        before, after, end = (dict(checkpoint.State(path)) for path in saved[1:])
        for key, tensor in before.items():
            if not key.startswith("average/"):  # it has moved on towards them
                assert torch.equal(tensor, after[key]), key
        assert any(not torch.equal(tensor, end[key]) for key, tensor in after.items())
        assert all(bool(tensor.isfinite().all()) for tensor in end.values())
        meta = checkpoint.read_meta(saved[-1])
        assert (meta.step, meta.rollbacks, meta.undone, meta.skipped) == (SHORT_STEPS, 1, 2, 0)
        assert meta.optimizer_steps == SHORT_STEPS - 2
        lines, _ = records.read_lines(run / METRICS)
        assert lines[-1].metrics["watch/rollbacks"] == 1
        assert lines[-1].metrics["watch/undone_steps"] == 2
        assert lines[-1].metrics["seconds/undone"] > 0
        states.append(end)
    first, again = states
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())


def test_going_back_is_the_same_on_any_number_of_ranks_and_has_a_limit(digits: Path, tmp_path: Path) -> None:
    """Steps 4 and 5 are no numbers, and the last checkpoint is step 3's."""
    options = ("--checkpoint.keep-last", 9, "--optim.kind", "sgd", "--train.rollback-nonfinite", 2)
    two, one, limited = tmp_path / "two", tmp_path / "one", tmp_path / "limited"
    finished = meet("nans", 1, 4, two, *job(two / "run", digits, *options))
    assert [rank.code for rank in finished] == [0, 0], finished[0].output
    assert "back to the weights of step 3, 1 steps are undone (roll-back 1 of" in finished[0].output
    assert "back to the weights of step 3, 1 steps are undone (roll-back 2 of" in finished[0].output, (
        "step 4 is undone already"
    )
    faulty = ("-m", "tests.train.faulty", "nans", 0, 4)
    run_ranks(1, (*faulty, *job(one / "run", digits, *options, "--train.micro-batch", 16)), one)
    ours, theirs = (dict(checkpoint.State(checkpoint.complete(run / "run")[-1])) for run in (one, two))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-5)
    finished = meet("nans", 1, 4, limited, *job(limited / "run", digits, *options, "--train.rollback-nonfinite", 1))
    assert [rank.code for rank in finished] == [1, 1]
    assert "roll back (1 times so far, train.rollback_nonfinite 1)" in finished[0].output
    early = meet("nan", 1, 2, tmp_path / "early", *job(tmp_path / "early" / "run", digits, *options))
    assert [rank.code for rank in early] == [1, 1]
    assert "no checkpoint yet to roll back to" in early[0].output


@pytest.mark.parametrize(("fault", "victim"), [("kill", 0), ("kill", 1), ("kill_start", 0), ("kill_end", 0)])
def test_a_killed_rank_is_named_and_the_others_leave(digits: Path, tmp_path: Path, fault: str, victim: int) -> None:
    finished = meet(fault, victim, 5, tmp_path, *job(tmp_path / "run", digits, "--data.workers", 1))
    assert finished[victim].code == -signal.SIGKILL
    assert finished[1 - victim].code == 1
    assert f"rank {victim} on {HOST} is gone" in finished[1 - victim].output


def test_an_error_on_one_rank_is_told_by_all(digits: Path, tmp_path: Path) -> None:
    first, second = meet("raise", 1, 3, tmp_path, *job(tmp_path / "run", digits))
    assert first.code == second.code == 1
    assert f"first failure: rank 1 on {HOST}: OSError: the disk is on fire" in first.output
    assert "Traceback" in second.output


def test_a_hung_step_shows_its_stacks_and_ends(digits: Path, tmp_path: Path) -> None:
    finished = meet("hang", 1, 3, tmp_path, *job(tmp_path / "run", digits, "--train.step-timeout", 6))
    assert [rank.code for rank in finished] == [1, 1]
    assert "Timeout (0:00:06)!" in finished[1].output
    assert re.search(r'File ".*faulty.py", line \d+ in hook', finished[1].output)
    assert re.search(r"in train_step", finished[1].output)


def test_a_rank_that_cannot_write_its_share_ends_the_run_at_once(digits: Path, tmp_path: Path) -> None:
    first, second = meet("full", 1, 3, tmp_path, *job(tmp_path / "run", digits, steps=1000))
    assert first.code == second.code == 1
    assert "step 6/" not in first.output, "that is where the next checkpoint would have told"
    for output in (first.output, second.output):
        assert "exits after step" in output
        assert "rank 1" in output
        assert "File too large" in output
    assert "state-001.safetensors" in second.output
    assert checkpoint.complete(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("fault", "when"),
    [("stop", SHORT_STEPS - 1), ("stop_evaluation", 2)],  # the last step is the first that begins with the wish
)
def test_a_stop_in_the_last_step_leaves_the_last_evaluation_to_the_next_start(
    digits: Path, tmp_path: Path, fault: str, when: int
) -> None:
    """... also one that comes in the middle of that evaluation, which may last longer than what is left to save."""
    run = tmp_path / "run"
    command = job(run, digits, "--data.eval-split", "val", "--train.eval-batch", 64)
    stopped = meet(fault, 1, when, tmp_path, *command)
    assert [rank.code for rank in stopped] == [75, 75], stopped[0].output
    assert "samples, top-1" not in stopped[0].output
    status = read_status(run)
    assert status is not None
    assert (status.state, status.step) == ("stopped", SHORT_STEPS)
    run_ranks(2, ("-m", *command, "--optim.lr", 0.5), tmp_path / "log")
    status = read_status(run)
    assert status is not None
    assert (status.state, status.step) == ("finished", SHORT_STEPS)
    assert 0 <= status.metrics["eval/top1"] <= 1
    assert checkpoint.read_meta(checkpoint.complete(run)[-1]).metrics["eval/top1"] == status.metrics["eval/top1"]
    assert records.read_lines(run / METRICS)[0][-1].metrics["eval/top1"] == status.metrics["eval/top1"]
    assert f"from step {SHORT_STEPS} on: optim.lr 0.001 -> 0.5" in (tmp_path / "log" / "rank0.log").read_text()


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_a_signal_to_any_rank_saves_and_stops_all(
    digits: Path, tmp_path: Path, number: signal.Signals, rank: int
) -> None:
    run = tmp_path / "run"
    with Ranks(2, ("-m", *job(run, digits, "--data.workers", 1, steps=100_000)), tmp_path / "log") as ranks:
        ranks.wait_for("step 4/", 120)
        ranks.signal(rank, number)
        finished = ranks.wait(60)
    assert [rank.code for rank in finished] == [75, 75], finished[0].output
    assert f"asked to stop: rank {rank} on {HOST}" in finished[0].output
    status = read_status(run)
    assert status is not None
    assert status.state == "stopped"
    saved = checkpoint.newest(checkpoint.complete(run), hashes=True)
    assert saved is not None
    assert saved.meta.step == status.step


def test_the_slow_rank_and_the_odd_loss_are_pointed_out(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    slow = meet("slow", 1, 1, tmp_path, *job(run, digits, "--train.log-every", 25, steps=25))
    assert f"warning: rank 1 on {HOST} is slow" in slow[0].output
    assert "rank 0 on" not in slow[0].output
    lines, _ = records.read_lines(run / METRICS)
    assert lines[-1].metrics["speed/step_p50"] > 0.15
    assert not [name for name in lines[-1].metrics if name.startswith(("watch/", "damage/"))], "nothing went wrong"


def test_the_attempts_add_up(digits: Path, tmp_path: Path) -> None:
    """One attempt that fails, one that finishes: their seconds by part cover the time that passed."""
    run = tmp_path / "run"
    began = time.time()
    waiting = ("--checkpoint.background", False)  # so that the checkpoint of step 3 is there when it fails
    meet("raise", 1, 6, tmp_path, *job(run, digits, *waiting))
    finished = meet("none", 0, 1, tmp_path, *job(run, digits, *waiting))
    passed = time.time() - began
    assert [rank.code for rank in finished] == [0, 0]
    assert "resumes after step 3" in finished[0].output
    (where,) = re.findall(r"time: (.*)", finished[0].output)
    assert "redone" in where
    assert sum(int(part) for part in re.findall(r"(\d+)%", where)) == pytest.approx(100, abs=4)
    record = json.loads((run / RECORD).read_text())
    assert [attempt["state"] for attempt in record["attempts"]] == ["FAILED", "FINISHED"]
    assert sum(attempt["ended"] - attempt["started"] for attempt in record["attempts"]) < passed


def test_an_evaluation_that_fails_at_the_end_costs_no_training(digits: Path, tmp_path: Path) -> None:
    """Here an image of the held-out split that doesn't decode; put right, the run evaluates and is finished."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(digits, data)
    held_out = open_split(data, "val").parts[0]
    tar = data / held_out.shards[0].file_name
    sound = tar.read_bytes()
    with tar.open("r+b") as file:
        file.seek(int(held_out.offset[0]))
        file.write(bytes(int(held_out.size[0])))
    command = job(run, data, "--data.eval-split", "val", "--train.eval-batch", 64, "--checkpoint.every", 0, steps=4)
    (failed,) = run_ranks(1, ("-m", *command), tmp_path / "log", code=2)
    assert "Find all such samples with vit verify" in failed.output
    assert [path.name for path in checkpoint.complete(run)] == ["step-00000004"]
    assert not checkpoint.read_meta(checkpoint.complete(run)[-1]).metrics
    tar.write_bytes(sound)
    (again,) = run_ranks(1, ("-m", *command), tmp_path / "again")
    assert "resumes after step 4" in again.output
    status = read_status(run)
    assert status is not None
    assert (status.state, status.step) == ("finished", 4)
    assert checkpoint.read_meta(checkpoint.complete(run)[-1]).metrics["eval/top1"] == status.metrics["eval/top1"]
