"""Top-1, top-5 and ReaL accuracy of jobs.suite against timm's validation, on the same logits.

timm's validate.py takes ``output[:, valid_labels]``, with the lines of its index files, then its ``accuracy`` of the
first five; with real labels, its ``RealLabelsImagenet``. The index files and both functions are in its package.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from benchmarks.peers import import_peer
from data_prep.test_sets.catalogue import named
from pipeline.dataset.class_lists import listed
from pipeline.suite.set_accuracy import real_hits
from pipeline.suite.subsets import hits, members

pytestmark = pytest.mark.peers

WNIDS = listed("imagenet1k") or []
IMAGES = 2000


def info(name: str) -> Path:
    """A file that timm ships."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        pytest.skip("needs timm (the peers extra)")
    return Path(spec.origin).parent / "data" / "_info" / name


def logits(seed: int, images: int = IMAGES) -> torch.Tensor:
    """As a model gives them that is right about half of the time; no ties, which timm breaks by chance."""
    return torch.randn(images, len(WNIDS), generator=torch.Generator().manual_seed(seed)) * 3


def test_timm_counts_our_classes_in_our_order() -> None:
    assert info("imagenet_synsets.txt").read_text().split() == WNIDS


@pytest.mark.parametrize("name", ["a", "r"])
def test_top1_and_top5_on_a_subset_are_timms(name: str) -> None:
    valid = [int(line) for line in info(f"imagenet_{name}_indices.txt").read_text().split()]
    wnids = info(f"imagenet_{name}_synsets.txt").read_text().split()
    assert [WNIDS[index] for index in valid] == wnids == sorted(wnids)
    assert len(valid) == 200
    logits_BC = logits(ord(name))
    labels_B = torch.randint(200, (IMAGES,), generator=torch.Generator().manual_seed(1))
    logits_BC[torch.arange(0, IMAGES, 2), torch.tensor(valid)[labels_B[::2]]] += 12

    timms = import_peer("timm").utils.accuracy(logits_BC[:, valid], labels_B, topk=(1, 5))
    group_C = members([(wnid,) for wnid in wnids], WNIDS, named(name).title)
    samples, top1, top5 = hits(logits_BC, group_C, labels_B).tolist()
    assert (samples, 100 * top1 / samples, 100 * top5 / samples) == (IMAGES, *(pytest.approx(float(x)) for x in timms))
    assert 0.4 < top1 / samples < 0.9
    every = members([(wnid,) for wnid in WNIDS], WNIDS, named("val").title)
    assert hits(logits_BC, every, torch.tensor(valid)[labels_B]).tolist()[1] < top1, "the other 800 classes matter"


def test_real_accuracy_is_timms() -> None:
    import_peer("timm")
    labels = json.loads(info("imagenet_real_labels.json").read_text())
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(labels) + 1)]
    theirs = import_peer("timm.data").RealLabelsImagenet(names)
    group_C = members([(wnid,) for wnid in WNIDS], WNIDS, named("real").title)
    ours = torch.zeros(2, dtype=torch.float64)
    for first in range(0, len(labels), IMAGES):
        part = labels[first : first + IMAGES]
        logits_BC = logits(first, len(part))
        for row, valid in enumerate(part):
            if valid and row % 2:
                logits_BC[row, valid[-1]] += 12
        theirs.add_result(logits_BC)
        ours += real_hits(logits_BC, group_C, [frozenset(valid) for valid in part])
    answered, right = ours.tolist()
    assert len(labels) == 50_000
    assert answered == sum(map(bool, labels)) < 50_000
    assert 100 * right / answered == pytest.approx(theirs.get_accuracy(k=1))
    assert 0.3 < right / answered < 0.9
