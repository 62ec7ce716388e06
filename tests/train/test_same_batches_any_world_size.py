"""Real training jobs of 1, 2 and 4 ranks, one of them killed: what the models are fed is the same, bit for bit."""

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.dataset.joined_split import open_split
from pipeline.loader.batches import eval_batches, train_batches
from pipeline.loader.transforms import TrainTransform
from pipeline.runs import records, sample_ledger
from pipeline.runs.folder import LEDGER, METRICS
from tests.helpers.jobs import audit
from tests.helpers.jobs import job as training_job
from tests.helpers.ranks import Ranks, run_ranks

STEPS, GLOBAL_BATCH = 20, 32  # 404 samples, 30 % of the dataset: an epoch and a half


def job(folder: Path, name: str, data: Path, *options: object) -> tuple[object, ...]:
    return (
        "-m", "tests.helpers.hashed_batches", folder / f"fed-{name}", "jobs.pretrain", "tiny",
        "--run-dir", folder / name,
        "--data.train", data, "--schedule.steps", STEPS, "--data.augment", "rand-m9-mstd0.5-inc1",
        "--data.crop", "simple", "--data.color-jitter", 0.3, "--data.mixup", 0.8, "--data.cutmix", 1.0,
        "--data.erasing", 0.2, "--model.image-size", 16,
        "--train.global-batch", GLOBAL_BATCH, "--train.micro-batch", 8, "--train.log-every", 100,
        "--train.dtype", "float32", "--schedule.warmup-steps", 2, "--data.eval-split", "none",
        "--checkpoint.every", 4, "--data.percent", 30, *options,
    )  # fmt: skip


def fed(folder: Path, world: int) -> dict[int, Counter[str]]:
    """By step, the lines of all ranks."""
    found: dict[int, Counter[str]] = {}
    for rank in range(world):
        for line in (folder / f"rank-{rank}-of-{world}.txt").read_text().splitlines():
            step, _, hashes = line.partition(" ")
            found.setdefault(int(step), Counter())[hashes] += 1
    return found


def test_killed_and_resumed_on_other_ranks_the_models_are_fed_the_same(digits: Path, tmp_path: Path) -> None:
    for name in ("one", "many"):
        (tmp_path / f"fed-{name}").mkdir()
    run_ranks(1, job(tmp_path, "one", digits, "--data.workers", 0), tmp_path / "log1")
    whole = fed(tmp_path / "fed-one", 1)
    assert sorted(whole) == list(range(1, STEPS + 1))
    assert all(sum(lines.values()) == GLOBAL_BATCH for lines in whole.values())
    assert len(set().union(*whole.values())) > 0.9 * STEPS * GLOBAL_BATCH  # posterised to black, some are alike

    with Ranks(2, job(tmp_path, "many", digits, "--data.workers", 1), tmp_path / "log2") as ranks:
        path, limit = tmp_path / "many" / LEDGER, time.monotonic() + 100
        while not path.exists() or len(sample_ledger.read(tmp_path / "many")) < 6:
            assert time.monotonic() < limit, ranks.output()
            time.sleep(0.01)
    # killed with SIGKILL, workers and all
    killed_at = len(sample_ledger.read(tmp_path / "many"))
    assert 6 <= killed_at < STEPS
    run_ranks(4, job(tmp_path, "many", digits, "--data.workers", 0), tmp_path / "log4", 200)

    before, after = fed(tmp_path / "fed-many", 2), fed(tmp_path / "fed-many", 4)
    assert all(before[step] == whole[step] for step in range(1, killed_at + 1))
    first = min(after)
    assert first <= killed_at
    assert sorted(after) == list(range(first, STEPS + 1))
    assert all(after[step] == whole[step] for step in after)

    code, output = audit(tmp_path / "many")
    assert code == 0, output
    assert f"{STEPS} steps of {GLOBAL_BATCH} samples, {killed_at - first + 1} repeated after a resume" in output
    assert "each sample came exactly once in each of the first 1 epochs" in output


def test_crop_erasing_and_evaluation_resize_reach_the_model(digits: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(digits, data)
    options = ("--data.crop", "resize", "--data.erasing", 0.5, "--data.eval-resize", "central", "--schedule.steps", 3)
    sizes = ("--train.global-batch", 64, "--train.micro-batch", 16, "--train.log-every", 100)
    words = list(training_job(run, data, *sizes, *options, "--data.eval-split", "val"))
    place = words.index("--data.min-area")  # of the Inception crop
    run_ranks(2, ("-m", *words[:place], *words[place + 2 :]), tmp_path / "log2")
    code, output = audit(run, "--step", 2)
    assert code == 0, output
    grid = cv2.cvtColor(cv2.imread(str(run / "step-2.png")), cv2.COLOR_BGR2RGB)

    def crops(transform: TrainTransform) -> np.ndarray:
        (batch,) = train_batches(
            open_split(digits, "train"), transform, seed=0, global_batch=64, micro_batch=64, rank=0, world_size=1,
            workers=0, start_step=1, stop_step=2,
        )  # fmt: skip
        return batch.images_BHWC.numpy().reshape(8, 8, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(128, 128, 3)

    assert (grid == crops(TrainTransform(16, crop="resize", flip=False, erasing=0.5))).all()
    assert not (grid == crops(TrainTransform(16, crop="resize", flip=False))).all()

    results = {}
    (path,) = run.glob("checkpoints/*/meta.json")
    for resize in ("central", "square"):
        meta = json.loads(path.read_text())
        meta["config"]["data"]["eval_resize"] = resize
        path.write_text(json.dumps(meta))
        (done,) = run_ranks(1, ("-m", "jobs.evaluate", run, "--data", data, "--workers", 0), tmp_path / f"log-{resize}")
        results[resize] = json.loads(done.output.splitlines()[-1])["loss"]
    metrics = records.read_lines(run / METRICS)[0][-1].metrics
    assert results["central"] == pytest.approx(metrics["eval/loss"], rel=1e-5)
    assert results["square"] != pytest.approx(metrics["eval/loss"], rel=1e-5)
    images = [
        next(
            eval_batches(
                open_split(data, "val"), image_size=16, batch=8, rank=0, world_size=1, workers=0, resize=resize
            )
        ).images_BHWC
        for resize in ("central", "square")
    ]
    assert not (images[0] == images[1]).all()
