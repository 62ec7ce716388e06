"""Whole jobs on real data: every launcher, kill -9 and resume, fine-tuning, evaluation."""

import json
import random
from pathlib import Path

import pytest

from tests.helpers.jobs import STEPS, TINY, pretrain
from tests.helpers.launch import ACCELERATE, TORCHRUN, kill_a_rank_after, kill_tree, last_json, losses, run, start
from tests.helpers.quick_python import executable


def test_kill_9_at_a_random_step_and_resume_gives_the_same_losses(
    uninterrupted: Path, seven_digits: Path, tmp_path: Path
) -> None:
    choice = random.Random()
    run_dir, log = tmp_path / "run", tmp_path / "log"
    job = (*TORCHRUN, *pretrain(run_dir, seven_digits))
    step = choice.randint(6, STEPS - 10)  # the run goes on until the kill
    process = start(*job, log=log)
    try:
        killed_at = kill_a_rank_after(process, run_dir, step, choice)
        assert process.wait(120) not in (0, 2, 75), log.read_text()
    finally:
        kill_tree(process)
    assert killed_at < STEPS, f"asked for step {step}, killed after {killed_at}"
    output = run(*job, log=log)
    assert "resumes after step" in output
    assert losses(run_dir) == losses(uninterrupted), f"killed after step {killed_at}"
    assert len(losses(run_dir)) == STEPS


def test_accelerate_launch_gives_torchruns_losses(uninterrupted: Path, seven_digits: Path, tmp_path: Path) -> None:
    run(*ACCELERATE, *pretrain(tmp_path / "run", seven_digits, STEPS), log=tmp_path / "log")
    assert losses(tmp_path / "run") == losses(uninterrupted)


def test_one_process_without_a_launcher_sees_the_same_batches(
    uninterrupted: Path, seven_digits: Path, tmp_path: Path
) -> None:
    job = (*pretrain(tmp_path / "run", seven_digits), "--data.workers", 0)
    run(*job, log=tmp_path / "log", python=str(executable()))
    ours, theirs = losses(tmp_path / "run"), losses(uninterrupted)
    assert ours.keys() == theirs.keys()
    # the sums of a batch run in another order: the first steps agree to rounding, later ones drift apart
    assert [ours[step] for step in range(1, 7)] == pytest.approx([theirs[step] for step in range(1, 7)], rel=1e-4)


@pytest.fixture(scope="session")
def finetuned(uninterrupted: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finetuned") / "run"
    job = ("-m", "jobs.finetune", "tiny", "--parent", uninterrupted, "--run-dir", run_dir, "--data.train", digits)
    job = (*job, *TINY, "--schedule.steps", 6, "--schedule.warmup-steps", 2)
    run(*TORCHRUN, *job, log=run_dir.parent / "log", python=str(executable()))
    return run_dir


def test_a_finetune_names_its_parent_and_has_its_own_size(uninterrupted: Path, finetuned: Path) -> None:
    facts = json.loads((finetuned / "run.json").read_text())
    parent = json.loads((uninterrupted / "run.json").read_text())
    assert facts["parent"]["run_dir"] == str(uninterrupted)
    assert facts["parent"]["step"] == STEPS
    assert facts["parent"]["dataset_digest"] == parent["dataset_digest"]
    sizes = [
        json.loads((folder / "config.json").read_text())["model"]["image_size"] for folder in (uninterrupted, finetuned)
    ]
    assert sizes[1] > sizes[0]
    assert (facts["classes"], parent["classes"]) == (10, 7)


def test_evaluation_counts_every_sample_once_under_any_number_of_ranks(
    finetuned: Path, digits: Path, tmp_path: Path
) -> None:
    job = ("-m", "jobs.evaluate", finetuned, "--data", digits, "--batch", 50)
    alone = last_json(run(*job, log=tmp_path / "alone", python=str(executable())))
    two = last_json(run(*ACCELERATE, *job, log=tmp_path / "two", python=str(executable())))
    in_training = json.loads((finetuned / "status.json").read_text())["metrics"]
    held_out = json.loads((digits / "dataset.json").read_text())["samples"]["val"]
    assert alone["samples"] == two["samples"] == held_out
    assert (alone["processes"], two["processes"]) == (1, 2)
    assert held_out % 2 == 1, "an odd number is what makes two ranks' shares unequal"
    for name in ("top1", "top5"):
        assert alone[name] == two[name] == in_training[f"eval/{name}"]
        assert round(alone[name] * held_out, 6).is_integer()


def test_a_finished_run_is_left_alone(uninterrupted: Path, seven_digits: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    output = run(*pretrain(uninterrupted, seven_digits), log=tmp_path / "log", python=str(executable()))
    (line,) = [line for line in output.splitlines() if "is finished" in line]
    assert ", top-1 " in line
    assert "another --run-dir" in line
    assert "speed/" not in line, "the results, not every metric"
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}


def test_ranks_that_fail_leave_promptly_with_their_loader_workers(seven_digits: Path, tmp_path: Path) -> None:
    job = (*pretrain(tmp_path / "run", seven_digits), "--optim.lr", 1e30, "--optim.clip", 0)
    output = run(*TORCHRUN, *job, log=tmp_path / "log", code=1, python=str(executable()))
    assert "Training has diverged" in output
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
