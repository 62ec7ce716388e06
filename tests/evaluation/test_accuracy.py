"""Evaluation: every sample once whatever the number of ranks, ties that don't flatter, and top-5 as written down."""

from pathlib import Path

import pytest
import torch

from pipeline.config.schema import ModelConfig
from pipeline.dataset.joined_split import open_split
from pipeline.evaluation.accuracy import Result, counts, evaluate
from pipeline.loader.batches import eval_batches
from pipeline.model.preprocess import normalise
from tests.helpers.models import random_model


def run(digits: Path, world: int, batch: int) -> Result:
    """Each rank's sums in turn, added up as the collective would."""
    model = random_model(ModelConfig("tiny", 16), 10).eval()
    total = torch.zeros(4, dtype=torch.float64)
    result = None
    split = open_split(digits, "val")
    for rank in reversed(range(world)):  # rank 0 last: it gets the sum of all

        def reduce(sums: torch.Tensor, last: bool = rank == 0) -> torch.Tensor:
            total.add_(sums)
            return total if last else sums.new_tensor([len(split), 0, 0, 0])

        result = evaluate(
            model, split, model=model.config, batch=batch, loss="softmax", workers=0, device=torch.device("cpu"),
            dtype=torch.float32, rank=rank, world_size=world, reduce=reduce,
        )  # fmt: skip
    assert result is not None
    return result


def test_any_number_of_ranks_and_batch_sizes_count_the_same(digits: Path) -> None:
    alone = run(digits, 1, 50)
    assert alone.samples == 451
    for world, batch in ((2, 50), (3, 64), (7, 7)):
        other = run(digits, world, batch)
        assert (other.samples, other.top1, other.top5) == (alone.samples, alone.top1, alone.top5)
        assert other.loss == pytest.approx(alone.loss, rel=1e-6)


def test_the_counts_are_torchs(digits: Path) -> None:
    model = random_model(ModelConfig("tiny", 16), 10).eval()
    split = open_split(digits, "val")
    hits1 = hits5 = 0
    with torch.no_grad():
        for batch in eval_batches(split, image_size=16, batch=100, rank=0, world_size=1, workers=0):
            order = model(normalise(batch.images_BHWC, torch.float32)).argsort(dim=1, descending=True)
            hits1 += int((order[:, 0] == batch.labels_B).sum())
            hits5 += int((order[:, :5] == batch.labels_B[:, None]).any(1).sum())
    result = run(digits, 1, 100)
    assert (result.top1, result.top5) == (hits1 / 451, hits5 / 451)


def test_equal_logits_count_as_wrong_but_for_the_first() -> None:
    logits_BC = torch.zeros(4, 10)
    count, top1, top5 = counts(logits_BC, torch.tensor([0, 1, 4, 5]))
    assert (count.item(), top1.item(), top5.item()) == (4, 1, 3)


@pytest.mark.parametrize("classes", [3, 10])
def test_what_is_no_number_is_nobody_s_first(classes: int) -> None:
    logits_BC = torch.full((4, classes), float("nan"))
    assert counts(logits_BC, torch.tensor([0, 1, 2, 0]))[1:] == (0, 0)
    logits_BC = torch.arange(10.0).repeat(2, 1)
    logits_BC[0, 3] = float("nan")  # of another class: it may be ahead
    assert counts(logits_BC, torch.tensor([9, 9]))[1:] == (1, 2)
