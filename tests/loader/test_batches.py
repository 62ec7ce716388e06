"""The loader on real shards: bitwise the same batches whoever reads them."""

import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.schema import DataConfig, ModelConfig
from pipeline.core.errors import UserError
from pipeline.dataset import format as dataset_format
from pipeline.dataset import split as splits
from pipeline.dataset.joined_split import JoinedSplit, chosen, open_split
from pipeline.loader.batches import Ahead, Batch, eval_batches, train_batches
from pipeline.loader.transforms import TrainTransform, eval_image
from pipeline.model.preprocess import normalise

GLOBAL_BATCH = 96
TRANSFORM = TrainTransform(24, augment="medium1")


@pytest.fixture(scope="module")
def split(digits: Path) -> JoinedSplit:
    return open_split(digits, "train")


def load(
    split: JoinedSplit, *, world: int = 1, micro: int = 8, workers: int = 0, start: int = 0, stop: int = 4
) -> list[str]:
    """A hash of each global batch's samples, labels and pixels, the samples sorted."""

    def rank_batches(rank: int) -> Iterator[Batch]:
        return train_batches(
            split,
            TRANSFORM,
            seed=5,
            global_batch=GLOBAL_BATCH,
            micro_batch=micro,
            rank=rank,
            world_size=world,
            workers=workers,
            start_step=start,
            stop_step=stop,
        )

    samples: dict[int, dict[int, bytes]] = {step: {} for step in range(start, stop)}
    for rank in range(world):
        for batch in rank_batches(rank):
            assert batch.images_BHWC.shape == (micro, 24, 24, 3)
            rows, labels = batch.samples_B.tolist(), batch.labels_B.tolist()
            for row, label, image in zip(rows, labels, batch.images_BHWC.numpy(), strict=True):
                assert label == split.label[row]
                samples[batch.step][row] = image.tobytes()
    assert all(len(rows) == GLOBAL_BATCH for rows in samples.values())
    return [
        hashlib.sha256(b"".join(str(row).encode() + rows[row] for row in sorted(rows))).hexdigest()
        for rows in samples.values()
    ]


@pytest.mark.parametrize(("world", "micro", "workers"), [(1, 96, 0), (1, 8, 2), (2, 12, 1), (4, 8, 0), (3, 32, 0)])
def test_batches_depend_on_neither_ranks_nor_workers(split: JoinedSplit, world: int, micro: int, workers: int) -> None:
    assert load(split, world=world, micro=micro, workers=workers) == load(split)


def test_resuming_at_any_step_changes_nothing_epoch_borders_included(split: JoinedSplit) -> None:
    border = len(split) // GLOBAL_BATCH  # the step in which the first epoch ends
    whole = load(split, stop=border + 3)
    for start in (1, border - 1, border, border + 1):
        assert load(split, start=start, stop=border + 3) == whole[start:]


def test_an_epoch_is_every_sample_once(split: JoinedSplit) -> None:
    batches = train_batches(
        split,
        TrainTransform(8),
        seed=0,
        global_batch=1,
        micro_batch=1,
        rank=0,
        world_size=1,
        workers=0,
        start_step=0,
        stop_step=len(split),
    )
    assert sorted(int(batch.samples_B) for batch in batches) == list(range(len(split)))


@pytest.mark.parametrize(("world", "batch", "workers"), [(1, 50, 0), (2, 50, 1), (4, 7, 0), (5, 10**12, 0)])
def test_evaluation_reads_every_sample_once(digits: Path, world: int, batch: int, workers: int) -> None:
    held_out = open_split(digits, "val")
    rows: list[int] = []
    for rank in range(world):
        for item in eval_batches(held_out, image_size=16, batch=batch, rank=rank, world_size=world, workers=workers):
            rows += item.samples_B.tolist()
            assert (item.images_BHWC[0].numpy() == eval_image(held_out.read(int(item.samples_B[0])), 16)).all()
    assert sorted(rows) == list(range(len(held_out)))


def test_normalise_maps_bytes_to_minus_one_to_one() -> None:
    images_BHWC = torch.tensor([0, 255, 127], dtype=torch.uint8).reshape(1, 1, 1, 3)
    x_BCHW = normalise(images_BHWC, torch.float32)
    assert x_BCHW.shape == (1, 3, 1, 1)
    assert x_BCHW.flatten().tolist() == pytest.approx([-1, 1, -0.5 / 127.5])


def test_normalise_takes_a_model_s_mean_and_standard_deviation() -> None:
    images_BHWC = torch.tensor([0, 255, 127], dtype=torch.uint8).reshape(1, 1, 1, 3)
    model = ModelConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = [-0.485 / 0.229, (1 - 0.456) / 0.224, (127 / 255 - 0.406) / 0.225]
    assert normalise(images_BHWC, torch.float32, model).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_the_index_leads_to_the_bytes_that_were_put_in(digits: Path, raw_digits: Path) -> None:
    import io
    import tarfile

    originals = {}
    with tarfile.open(raw_digits) as outer:
        for member in outer:
            inner = outer.extractfile(member)
            assert inner is not None
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as tar:
                for image in tar:
                    content = tar.extractfile(image)
                    assert content is not None
                    originals[image.name.removesuffix(".JPEG")] = (member.name.removesuffix(".tar"), content.read())
    wnids = dataset_format.read_classes(digits)["wnid"].to_pylist()
    index = dataset_format.read_index(digits, ["key", "split"])
    keys = np.array(index["key"].to_pylist())
    found = 0
    for name in ("train", "val"):
        part = open_split(digits, name)
        for row, key in enumerate(keys[np.array(index["split"].cast("string").to_pylist()) == name]):
            assert (wnids[part.label[row]], part.read(row)) == originals[key]
            found += 1
    assert found == len(originals) == 1797


def test_a_list_of_classes_from_windows(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\ufeffdigit1\r\ndigit7\r\n")
    assert chosen(DataConfig(classes=tmp_path / "list")).classes == ("digit1", "digit7")


def test_what_is_missing_is_named(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"test.*train, val"):
        open_split(digits, "test")
    shutil.copytree(digits, tmp_path / "copy")
    tar = next((tmp_path / "copy").glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UserError, match=tar.name):
        open_split(tmp_path / "copy", "train")


def test_batches_fetched_ahead_are_the_same_ones_in_the_same_order() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for item in range(4):
            taken.append(item)
            yield item

    items = Ahead(source())
    assert next(items) == 0
    items.fetch()
    items.fetch()
    assert taken == [0, 1]
    assert list(items) == [1, 2, 3]
    items.fetch()
    assert next(items, None) is None


def test_a_process_keeps_few_tars_open_whatever_a_batch_needs(
    digits: Path, split: JoinedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "_OPEN", 4)
    monkeypatch.setattr(splits, "_open", OrderedDict())
    both = open_split([str(digits), str(digits)], "train")
    assert len(both.shards) > 8
    rows = np.random.default_rng(0).permutation(len(both))
    expected = [split.read(int(row) % len(split)) for row in rows]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for place, jpeg in both.read_all(rows):
        assert jpeg == expected[place]
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4
