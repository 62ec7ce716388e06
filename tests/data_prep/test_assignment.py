"""Keys of samples, as pure functions of the images' names."""

import itertools

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data_prep.planning import assignment
from data_prep.planning.assignment import SplitRule
from data_prep.tables import CATALOGUE

WNID = "n01440764"
STEMS = st.one_of(
    st.from_regex(r"n01440764_[0-9]{1,4}", fullmatch=True),
    st.from_regex(r"ILSVRC2012_val_0000000[0-9]", fullmatch=True),
    st.text(st.sampled_from("ab1_-/.%\\\n\x7f é"), min_size=1, max_size=12),
)
NAMES = st.builds(lambda stem, ending: stem + ending, STEMS, st.sampled_from((".JPEG", ".jpg", ".a/b", ".", "")))


@given(st.lists(NAMES, max_size=8, unique=True))
def test_every_image_of_a_class_has_a_key_of_its_own_made_of_its_name(names: list[str]) -> None:
    names.sort()
    rows = [[WNID] * len(names), names, [b"x.tar"] * len(names), [0] * len(names), [1] * len(names), [0] * len(names)]
    table = pa.table([pa.array(column, field.type) for column, field in zip(rows, CATALOGUE, strict=True)], CATALOGUE)
    keys = assignment.with_keys(table, {WNID: 3}, SplitRule(), 0)["key"].to_pylist()
    taken: set[str] = set()
    for name, key in zip(names, keys, strict=True):
        own = assignment.key_of(WNID, name)
        assert key == (own if own not in taken else assignment.key_of(WNID, f"{name}.jpg"))
        taken.add(key)


def test_images_of_different_classes_have_different_keys() -> None:
    classes = ("a", "a_b", "a_b_1", "b", WNID, f"{WNID}_1", f"{WNID}5", "é")
    names = {f"{stem}{between}1.jpg" for stem in (*classes, "b_1", "") for between in ("", "_", "/", "_1_")}
    images = list(itertools.product(classes, names))
    assert len({assignment.key_of(wnid, name) for wnid, name in images}) == len(images)


def test_folders_inside_a_class_are_not_taken_for_another_class() -> None:
    assert assignment.key_of("a", "a_b/1.jpg") == "a/a_b/1"
    assert assignment.key_of("a_b", "1.jpg") == "a_b/1"
    assert assignment.key_of("a_b", "a_b_1.jpg") == "a_b_1"
    assert assignment.key_of("a", "a_b_1.jpg") == "a/a_b_1"


def test_keys_of_the_releases() -> None:
    assert assignment.key_of(WNID, "n01440764_10026.JPEG") == "n01440764_10026"
    assert assignment.key_of("n01440764", "ILSVRC2012_val_00000293.JPEG") == "ILSVRC2012_val_00000293"
    assert assignment.key_of("cats", "a/tom.v2.jpg") == "cats/a/tom%2Ev2"
    assert assignment.key_of("cats", "noending") == "cats/noending"
    assert assignment.key_of("cats", "50%.jpg") == "cats/50%25"
