"""Orders of ImageNet's classes, recognized by the wnids that come with class numbers."""

import importlib.util
import random
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.dataset import class_lists

CHOICES = ("fall11", "google21k", "imagenet12k", "imagenet1k")
timm_files = {
    "fall11": "imagenet22k_synsets.txt",
    "google21k": "imagenet21k_goog_synsets.txt",
    "imagenet12k": "imagenet12k_synsets.txt",
    "imagenet1k": "imagenet_synsets.txt",
}


def known(choice: str) -> list[str]:
    wnids = class_lists.listed(choice)
    assert wnids is not None
    return wnids


def timm_file(name: str) -> str:
    found = importlib.util.find_spec("timm")  # importing it would need torchvision
    assert found is not None
    assert found.origin is not None
    return (Path(found.origin).parent / "data" / "_info" / name).read_text("utf-8")


@pytest.mark.parametrize(("choice", "size"), [*zip(CHOICES, (21_841, 21_843, 11_821, 1_000), strict=True)])
def test_each_order_is_recognized(choice: str, size: int) -> None:
    wnids = known(choice)
    assert len(wnids) == size
    assert wnids == sorted(wnids)
    assert class_lists.recognized(dict(enumerate(wnids))) == wnids
    half = dict(random.Random(0).sample(list(enumerate(wnids)), size // 2))
    half[size - 1] = wnids[-1]
    assert class_lists.recognized(half) == wnids


def test_a_release_without_a_list_is_known_by_its_own_classes() -> None:
    winter = [wnid for wnid in known("fall11") if not wnid.startswith("n10")]  # people, most of what winter21 lacks
    assert class_lists.recognized(dict(enumerate(winter))) == winter
    first = known("imagenet1k")
    microsoft = [*first, *sorted({*known("fall11")} - {*first})]
    assert class_lists.recognized(dict(enumerate(microsoft))) == microsoft


def test_an_unknown_or_ambiguous_order_is_refused() -> None:
    shuffled = known("imagenet1k")
    random.Random(0).shuffle(shuffled)
    gap = dict(enumerate(shuffled))
    del gap[17]
    with pytest.raises(UserError, match=r"in none of the orders fall11, google21k.*--classes FILE"):
        class_lists.recognized(gap)
    shifted = {number + 1: wnid for number, wnid in enumerate(known("fall11"))}
    with pytest.raises(UserError, match="in none of the orders"):
        class_lists.recognized(shifted)
    with pytest.raises(UserError, match="fit the orders fall11 and google21k"):
        class_lists.recognized(dict(enumerate(known("fall11")[:100])))


@pytest.mark.peers
@pytest.mark.parametrize("choice", CHOICES)
def test_the_lists_are_timms(choice: str) -> None:
    wnids = timm_file(timm_files[choice]).split()
    assert wnids == (sorted(known(choice)))
    assert wnids == known(choice)


def test_the_names_decide_what_a_given_list_means() -> None:
    tench, fox = "n01440764", "n02119789"
    assert class_lists.meaning(None, {}) is None
    assert class_lists.meaning(["a", "b"], {}) == ["a", "b"]
    assert class_lists.meaning(["a", "b"], {0: tench, 1: fox}) == ["a", "b"], "names of one's own"
    assert class_lists.meaning([fox, tench], {0: fox, 1: tench}) == [fox, tench]
    assert class_lists.meaning([tench, fox], {0: fox, 1: tench}) == [fox, tench], "which the list contradicts"
    fall, google = known("fall11"), known("google21k")
    assert class_lists.meaning(google, dict(enumerate(fall))) == fall
    with pytest.raises(UserError, match="in none of the orders"):
        class_lists.meaning(google, {5: fall[700], 6: fall[600]})


@pytest.mark.peers
@pytest.mark.parametrize(
    ("file", "order", "chosen"),
    [
        ("imagenet21k_goog_to_22k_indices.txt", "google21k", "fall11"),
        ("imagenet21k_goog_to_12k_indices.txt", "google21k", "imagenet12k"),
        ("imagenet22k_to_12k_indices.txt", "fall11", "imagenet12k"),
    ],
)
def test_timms_ways_from_one_order_to_another_are_ours(file: str, order: str, chosen: str) -> None:
    wnids = known(order)
    assert [wnids[int(line)] for line in timm_file(file).split()] == known(chosen)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("imagenet22k_ms_synsets.txt", 21_842),  # Microsoft's
        ("imagenet21k_miil_synsets.txt", 11_221),  # ImageNet-21K-P of fall 2011
        ("imagenet21k_miil_w21_synsets.txt", 10_450),  # and of winter 2021
    ],
)
def test_timms_other_orders_are_recognized_by_their_own_classes(file: str, size: int) -> None:
    wnids = timm_file(file).split()
    assert len(wnids) == size
    assert class_lists.recognized(dict(enumerate(wnids))) == wnids
    assert all(class_lists.name_of(wnid) != wnid for wnid in wnids), "a class without a name"
    half = {number: wnid for number, wnid in enumerate(wnids) if number % 2}
    with pytest.raises(UserError, match="in none of the orders"):
        class_lists.recognized(half)
