"""Names and members as they are found in tars and folders of others: each right, or one line."""

import gc
import subprocess
import tarfile
import unicodedata
import warnings
from pathlib import Path

import pytest
import webdataset

from data_prep.planning.assignment import key_of
from data_prep.sources.tar_headers import scan
from tests.data_prep.datasets import keys, rejects, samples, shard_into, wnids
from tests.data_prep.releases import folders

NFC, NFD = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))


def test_keys_that_webdataset_would_skip_are_escaped(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "in", photos, "__background__", "cat")
    made = shard_into(source, tmp_path / "out")
    assert keys(made) == {"%5F_background__/0", "%5F_background__/1", "cat/0", "cat/1"}
    shards = [str(path) for path in made.rglob("*.tar")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # webdataset leaves files open
        assert {item["__key__"] for item in webdataset.WebDataset(shards, shardshuffle=False)} == keys(made)
        gc.collect()
    assert keys(shard_into(made, tmp_path / "again")) == keys(made)
    assert key_of("__a", "__a_1.jpg") == "%5F_a_1"
    assert key_of("cat", "__a__.jpg") == "cat/__a__"


@pytest.mark.parametrize("of_list", [NFC, NFD])
@pytest.mark.parametrize("of_folder", [NFC, NFD])
def test_both_forms_of_unicode_are_one_class(of_folder: str, of_list: str, photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"b\n{of_list}\n", encoding="utf-8")
    made = shard_into(folders(tmp_path / "in", photos, of_folder, "b"), tmp_path / "out", "--classes",
                      tmp_path / "list.txt")  # fmt: skip
    assert wnids(made) == ["b", NFC]
    assert rejects(made) == []


@pytest.mark.parametrize("options", [
    ("--format=gnu",), ("--format=pax", "--sparse-version=0.0"), ("--format=pax", "--sparse-version=0.1"),
    ("--format=pax", "--sparse-version=1.0"),
])  # fmt: skip
def test_sparse_members_are_refused_by_name_and_the_others_are_read(
    options: tuple[str, ...], photos: list[bytes], tmp_path: Path
) -> None:
    """A map of 40 pieces, which doesn't fit into GNU's old header (GNU tar manual, "Storing Sparse Files")."""
    source = folders(tmp_path / "in", photos, "cat", "dog")
    with (source / "cat" / "holes.jpg").open("wb") as file:
        for piece in range(40):
            file.seek(piece * (1 << 16))
            file.write(b"x" * 4096)
    tar = tmp_path / "in.tar"
    subprocess.run(["tar", "--sparse", "--hole-detection=raw", *options, "--sort=name", "-cf", tar, "-C", source,
                    "cat", "dog"], check=True)  # fmt: skip
    data = tar.read_bytes()
    found = {item.name: item.kind for item in scan(lambda at, size: data[at : at + size], 0, len(data))}
    with tarfile.open(tar) as expected:
        assert sorted(name.rstrip("/") for name in found) == sorted(expected.getnames())
    assert found["cat/holes.jpg"] == "sparse file"
    made = shard_into(tar, tmp_path / "out")
    assert keys(made) == {"cat/0", "cat/1", "dog/0", "dog/1"}
    assert rejects(made) == ["not_a_file"]


@pytest.mark.parametrize("folder", ["", "val_images/"])
def test_a_tar_of_validation_images_with_their_classes(folder: str, photos: list[bytes], tmp_path: Path) -> None:
    classes = ("n01440764", "n01443537", "n01440764")
    names = [f"ILSVRC2012_val_0000000{number}_{wnid}" for number, wnid in enumerate(classes, 1)]
    tar = samples(tmp_path / "val.tar", *[(f"{folder}{name}.JPEG", photos[at]) for at, name in enumerate(names)])
    made = shard_into(tar, tmp_path / "out", "--split", "val")
    assert wnids(made) == ["n01440764", "n01443537"]
    assert keys(made) == {f"ILSVRC2012_val_0000000{number}" for number in (1, 2, 3)}


def test_hugging_face_s_tars_of_training_images(photos: list[bytes], tmp_path: Path) -> None:
    for number in range(2):
        members = [(f"{wnid}_{number}_{wnid}.JPEG", photos[number]) for wnid in ("n01440764", "n01443537")]
        samples(tmp_path / "in" / f"train_images_{number}.tar", *members)
    made = shard_into(tmp_path / "in", tmp_path / "out")
    assert wnids(made) == ["n01440764", "n01443537"]
    assert keys(made) == {f"{wnid}_{number}" for wnid in wnids(made) for number in range(2)}
