"""The ledger of a real run that was stopped and resumed on other ranks, and what jobs.audit says of it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.dataset.joined_split import open_split
from pipeline.loader.batches import train_batches
from pipeline.loader.order import Order, ledger_hash
from pipeline.loader.transforms import TrainTransform
from pipeline.runs import sample_ledger
from pipeline.runs.folder import LEDGER
from tests.helpers.jobs import AUDITED_BATCH, STEPS, audit, run_pretrain

GLOBAL_BATCH = AUDITED_BATCH  # 24 batches of the split's 1,348 samples: a little over an epoch


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("audit") / "run"
    run_pretrain(run, digits, 2)
    return run


def test_two_ranks_leave_the_ledger_of_the_order(run: Path, digits: Path) -> None:
    order = Order(tuple(shard.samples for shard in open_split(digits, "train").shards), 0)
    lines = sample_ledger.read(run)
    assert [step for step, _ in lines] == list(range(1, STEPS + 1))
    for step, value in lines:
        positions = np.arange((step - 1) * GLOBAL_BATCH, step * GLOBAL_BATCH)
        assert value == ledger_hash(order.rows(positions)[1])
    code, output = audit(run)
    assert code == 0, output
    assert f"{STEPS} steps of {GLOBAL_BATCH} samples, 0 repeated after a resume" in output
    assert "each sample came exactly once in each of the first 1 epochs" in output


def test_a_picture_that_cannot_be_written_is_one_line_with_the_cause(run: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.png").symlink_to("/dev/full")
    code, output = audit(run, "--step", 3, "--out", tmp_path / "grid.png")
    assert code == 2
    assert f"error: --out '{tmp_path}/grid.png' can't be written (No space left on device): name another" in output
    assert "libpng" not in output


def test_a_step_is_shown_as_the_model_saw_it(run: Path, digits: Path, tmp_path: Path) -> None:
    code, output = audit(run, "--step", 3, "--out", tmp_path / "grid.png")
    assert code == 0, output
    grid = cv2.cvtColor(cv2.imread(str(tmp_path / "grid.png")), cv2.COLOR_BGR2RGB)
    split = open_split(digits, "train")
    (batch,) = train_batches(
        split, TrainTransform(16, flip=False, min_area=0.5), seed=0, global_batch=GLOBAL_BATCH,
        micro_batch=GLOBAL_BATCH, rank=0, world_size=1, workers=0, start_step=2, stop_step=3,
    )  # fmt: skip
    assert grid.shape == (128, 128, 3)
    assert (grid[16:32, 32:48] == batch.images_BHWC[10].numpy()).all()
    assert len(output.splitlines()) == GLOBAL_BATCH + 1
    assert split.where(int(batch.samples_B[10])) in output.splitlines()[10]


def test_what_differs_from_the_order_is_named() -> None:
    order = Order((300, 300), 1)
    lines = [(step + 1, ledger_hash(order.rows(np.arange(step * 50, step * 50 + 50))[1])) for step in range(30)]
    assert sample_ledger.audit(lines, order, 50) == sample_ledger.Audit(30, 0, [], [], [2], [600])
    again = [*lines[:20], *lines[15:]]  # killed after step 20, resumed from 15
    assert sample_ledger.audit(again, order, 50) == sample_ledger.Audit(30, 5, [], [], [2], [600])
    twice = [*lines[:7], (8, lines[6][1]), *lines[8:]]  # step 7's samples again
    assert sample_ledger.audit(twice, order, 50) == sample_ledger.Audit(30, 0, [], [8], [0], [600])
    hole = [*lines[:20], *lines[21:]]
    assert sample_ledger.audit(hole, order, 50) == sample_ledger.Audit(29, 0, [21], [], [1], [600])
    assert sample_ledger.audit([*lines[:3], (2, 5)], order, 50).wrong == [2]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    with sample_ledger.appending(tmp_path) as note:
        note(1, 2**40 - 1)
        note(2, 7)
        assert sample_ledger.read(tmp_path)[1:] == [(2, 7)], "a killed run leaves the lines of all its steps"
    with (tmp_path / LEDGER).open("a") as file:
        file.write("3 00000000")
    assert sample_ledger.read(tmp_path) == [(1, 2**40 - 1), (2, 7)]


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    code, output = audit(tmp_path)
    assert code == 2
    assert len(output.splitlines()) == 1
    assert str(tmp_path) in output


def test_a_line_that_a_crash_tore_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text("1 0000000001\n2 00000")
    with sample_ledger.appending(tmp_path) as note:
        note(2, 7)
    assert sample_ledger.read(tmp_path) == [(1, 1), (2, 7)]
