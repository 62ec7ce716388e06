"""Checkpoints of real ranks: broken ones, kept ones, those on the clock, averages, and what may not be resumed."""

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import format as checkpoint
from pipeline.checkpoint.saver import delete_old
from pipeline.config.schema import CheckpointConfig, RunConfig
from pipeline.config.serialize import from_dict, to_dict
from pipeline.core.errors import UserError
from pipeline.runs import folder as run_folder
from tests.helpers.jobs import job
from tests.helpers.ranks import run_ranks

NINE = (
    "--train.average", 0.8, "--data.eval-split", "val", "--model.dropout", 0.1, "--model.stochastic-depth", 0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def run_of_nine(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO-1, a running average, dropout; a checkpoint a step."""
    run = tmp_path_factory.mktemp("nine") / "run"
    options = (*NINE, "--checkpoint.every", 1, "--checkpoint.keep-last", 9)
    run_ranks(2, ("-m", *job(run, digits, *options, "--train.eval-every", 3, steps=9)), run.parent / "log")
    assert len(checkpoint.complete(run)) == 9
    return run


@pytest.fixture
def copy(run_of_nine: Path, tmp_path: Path) -> Path:
    """Unfinished: its last two checkpoints are gone."""
    run = tmp_path / "run"
    shutil.copytree(run_of_nine, run)
    for path in checkpoint.complete(run)[-2:]:
        shutil.rmtree(path)
    status = run_folder.read_status(run)
    assert status is not None
    run_folder.write_status(run, dataclasses.replace(status, state="running", step=8))
    return run


def cut(path: Path) -> None:
    file = next(path.glob("state-*"))
    file.write_bytes(file.read_bytes()[:-100])


def flip(path: Path) -> None:
    file = next(path.glob("state-*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose(path: Path) -> None:
    next(path.glob("state-*")).unlink()


def half_a_meta(path: Path) -> None:
    (path / "meta.json").write_text((path / "meta.json").read_text()[:200])


def a_bit_of_meta(path: Path) -> None:
    content = bytearray((path / "meta.json").read_bytes())
    content[len(content) // 2] |= 0x80  # no UTF-8 any more
    (path / "meta.json").write_bytes(content)


def change_meta(**fields: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        meta = json.loads((path / "meta.json").read_text())
        (path / "meta.json").write_text(json.dumps(meta | fields))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "bytes long"),
        (flip, "does not have the hash"),
        (lose, "is missing"),
        (change_meta(format_version=99), "format_version 99"),
        (half_a_meta, "not a complete checkpoint"),
        (a_bit_of_meta, "not a complete checkpoint"),
        (change_meta(step=8), "is of step 8"),
        (change_meta(files={}), "with 0 files"),
        (change_meta(files=[]), "not a complete checkpoint"),
        (change_meta(files={"state-000.safetensors": {}}), "not a complete checkpoint"),
    ],
)
def test_a_broken_checkpoint_is_passed_over_aloud(copy: Path, caplog: pytest.LogCaptureFixture, damage, said) -> None:  # type: ignore[no-untyped-def]
    newest, before = checkpoint.complete(copy)[-1], checkpoint.complete(copy)[-2]
    damage(newest)
    assert (found := checkpoint.newest(checkpoint.complete(copy), hashes=True)) is not None
    assert found.path == before
    assert f"checkpoint {newest} is skipped" in caplog.text
    assert said in caplog.text


def test_a_run_goes_on_from_the_newest_sound_one(copy: Path, digits: Path, run_of_nine: Path, tmp_path: Path) -> None:
    """... past a corrupted one and one that a kill left half-written, to the very weights of the undisturbed run.

    A user's copy is no checkpoint, and what is above the newest sound one doesn't count as newer: with keep-last 1 each
    new one stays until the next.
    """
    flip(checkpoint.complete(copy)[-1])
    ghost = copy / "checkpoints" / checkpoint.folder_name(30)
    shutil.copytree(checkpoint.complete(copy)[-1], ghost)
    kept = shutil.copytree(checkpoint.complete(copy)[0], copy / "checkpoints" / "step-00000040-good")
    assert kept not in checkpoint.complete(copy)
    unfinished = copy / "checkpoints" / ".step-00000008.tmp"
    unfinished.mkdir()
    (unfinished / "state-000.safetensors").write_bytes(b"half")
    options = (*NINE, "--checkpoint.every", 1, "--checkpoint.keep-last", 1)
    finished = run_ranks(2, ("-m", *job(copy, digits, *options, steps=9)), tmp_path / "log")
    assert "resumes after step 6" in finished[0].output
    assert "is skipped: " in finished[0].output
    assert not unfinished.exists()
    assert [run_folder.step_of(path) for path in checkpoint.complete(copy)] == [9, 30]
    shutil.rmtree(ghost)
    ours, theirs = (dict(checkpoint.State(checkpoint.complete(run)[-1])) for run in (copy, run_of_nine))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_a_run_whose_checkpoints_are_all_broken_does_not_start_over(copy: Path, digits: Path, tmp_path: Path) -> None:
    for path in checkpoint.complete(copy):
        flip(path)
    finished = run_ranks(2, ("-m", *job(copy, digits, *NINE, steps=9)), tmp_path / "log", code=2)
    assert "all are damaged" in finished[0].output


def test_the_average_is_the_one_of_the_definition(run_of_nine: Path) -> None:
    states = [dict(checkpoint.State(path)) for path in checkpoint.complete(run_of_nine)]
    names = [key.partition("/")[2] for key in states[0] if key.startswith("param/")]
    for name in names:
        average = states[0][f"param/{name}"].double()
        for state in states[1:]:
            average = 0.8 * average + 0.2 * state[f"param/{name}"].double()
        torch.testing.assert_close(states[-1][f"average/{name}"].double(), average, rtol=1e-5, atol=1e-7)
    _, _, averaged = checkpoint.read_model(run_of_nine, average=True)
    assert torch.equal(averaged["head.weight"], states[-1]["average/head.weight"])


def test_evaluating_the_average_leaves_the_weights_alone(digits: Path, tmp_path: Path) -> None:
    """Under ZeRO-3, where each rank holds a part: the run with evaluations has the weights of the run without."""
    results = []
    for every in (0, 2):
        run = tmp_path / f"every{every}"
        options = ("--train.average", 0.8, "--train.zero-stage", 3, "--data.eval-split", "val")
        run_ranks(
            2, ("-m", *job(run, digits, *options, "--train.eval-every", every, steps=5)), tmp_path / f"log{every}"
        )
        results.append((dict(checkpoint.State(checkpoint.complete(run)[-1])), run_folder.read_status(run)))
    (without, status), (often, _) = results
    for key, tensor in without.items():
        assert torch.equal(often[key], tensor), key
    assert status is not None
    assert 0 <= status.metrics["eval_average/top1"] <= 1
    assert status.metrics["eval_average/loss"] != status.metrics["eval/loss"]


def test_which_checkpoints_stay(copy: Path) -> None:
    """The evaluated steps are 3 and 6 here; the better one stays."""
    scores = {path: checkpoint.read_meta(path).metrics.get("eval/top1") for path in checkpoint.complete(copy)}
    evaluated = {path: score for path, score in scores.items() if score is not None}
    assert [path.name[-1] for path in evaluated] == ["3", "6"]
    best = max(evaluated, key=lambda path: (evaluated[path], path.name))
    half_a_meta(checkpoint.complete(copy)[0])
    delete_old(copy, CheckpointConfig(keep_last=1, keep_every=4, keep_best=1), 7)
    assert {run_folder.step_of(path) for path in checkpoint.complete(copy)} == {7, 4, run_folder.step_of(best)}
    delete_old(copy, CheckpointConfig(keep_last=2), 7)
    assert len(checkpoint.complete(copy)) == 2


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_skipped(
    copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the training, when somebody evaluates its run."""
    *_, before, newest = checkpoint.complete(copy)
    hashed = checkpoint.xxh3_128

    def after_the_deletion(path: Path) -> str:
        if path.parent == newest:
            shutil.rmtree(newest)
        return hashed(path)

    monkeypatch.setattr(checkpoint, "xxh3_128", after_the_deletion)
    found = checkpoint.newest(checkpoint.complete(copy), hashes=True)
    assert found is not None
    assert found.path == before
    assert f"checkpoint {newest} is skipped" in caplog.text
    assert "state-000.safetensors is missing" in caplog.text


def test_a_checkpoint_in_use_that_stays_is_named_and_stops_no_training(
    copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS keeps an open file as .nfs..., so its folder can't be removed."""
    first, second, *_ = checkpoint.complete(copy)
    remove = shutil.rmtree

    def with_open_file(path: Path) -> None:
        if path == first:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", with_open_file)
    delete_old(copy, CheckpointConfig(keep_last=1), 7)
    assert [run_folder.step_of(path) for path in checkpoint.complete(copy)] == [7]
    assert first.exists()
    assert not second.exists()
    assert f"old checkpoint {first} can't be deleted (Directory not empty)" in caplog.text


def test_checkpoints_by_the_clock(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--checkpoint.every", 0, "--checkpoint.minutes", 0.2 / 60, "--checkpoint.keep-last", 100)
    run_ranks(1, ("-m", *job(run, digits, *options, steps=30)), tmp_path / "log")
    steps = [checkpoint.read_meta(path).step for path in checkpoint.complete(run)]
    assert steps[-1] == 30
    assert len(steps) >= 2, "30 steps take over a fifth of a second"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("optim", "weight_decay", 0.5), "optim.weight_decay: 0.1 -> 0.5"),
        (("train", "seed", 3), "train.seed: 0 -> 3"),
        (("train", "average", 0.5), "train.average: 0.8 -> 0.5"),
    ],
)
def test_a_changed_configuration_is_refused_with_the_difference(
    copy: Path, change: tuple[str, str, float], said: str
) -> None:
    part, name, value = change
    config = dataclasses.replace(from_dict(RunConfig, json.loads((copy / "config.json").read_text())), run_dir=copy)
    run_folder.RunFolder(copy).check_config(config)
    changed = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{name: value})})
    with pytest.raises(UserError) as error:
        run_folder.RunFolder(copy).check_config(changed)
    assert said in str(error.value)


def test_fields_that_change_no_result_may_change(copy: Path) -> None:
    config = dataclasses.replace(from_dict(RunConfig, json.loads((copy / "config.json").read_text())), run_dir=copy)
    train = dataclasses.replace(config.train, zero_stage=3, micro_batch=2, profile=4)
    run_folder.RunFolder(copy).check_config(
        dataclasses.replace(config, train=train, checkpoint=CheckpointConfig(every=7))
    )
    rescued = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5))
    run_folder.RunFolder(copy).check_config(rescued)
    assert run_folder.retuned(rescued, to_dict(config)) == ["optim.lr 0.001 -> 0.5"]
    assert run_folder.retuned(config, to_dict(config)) == []
    other = dataclasses.replace(config, parent="other")
    run_folder.RunFolder(copy).check_config(other)
    assert run_folder.RunFolder(copy).as_begun(other) == config  # and what it did begin from stays known
    fresh = dataclasses.replace(other, run_dir=copy / "fresh")
    assert run_folder.RunFolder(fresh.run_dir).as_begun(fresh) == fresh
    tree = json.loads((copy / "config.json").read_text())
    del tree["train"]["label_smoothing"]  # written by a version that had no such field
    (copy / "config.json").write_text(json.dumps(tree))
    run_folder.RunFolder(copy).check_config(config)


DATA = ("classes", "classes_digest", "dataset_digest", "eval_digest")


@pytest.mark.parametrize("name", DATA)
def test_changed_data_are_refused(copy: Path, name: str) -> None:
    record = json.loads((copy / "run.json").read_text())
    facts = {key: record[key] for key in DATA}
    run_folder.RunFolder(copy).check_facts(facts)
    with pytest.raises(UserError, match=f"{name} was"):
        run_folder.RunFolder(copy).check_facts(facts | {name: "another"})
