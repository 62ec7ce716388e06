"""What a folder or tar holds becomes classes, samples and splits as it was meant, or one line says what is missing."""

import gzip
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_prep import index
from data_prep.sources import splits
from pipeline.core.errors import UserError
from pipeline.dataset import format as dataset_format
from tests.data_prep.datasets import keys, labels, rejects, samples, shard_into, wnids
from tests.data_prep.releases import add, class_tar, folders


def split_folders(root: Path, photos: list[bytes], names: Sequence[str]) -> Path:
    for name in names:
        folders(root / name, photos, "crane", "hawfinch", each=1)
    return root


def tar_of(folder: Path) -> Path:
    path = folder.with_name(folder.name + ".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, folder.name)
    return path


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("train", "valid", "test"), {"train": "train", "valid": "val", "test": "test"}),
        (("Train", "Val"), {"Train": "train", "Val": "val"}),
        (("training", "testing"), {"training": "train", "testing": "test"}),
        (("dev", "train", "annotations"), {"dev": "val", "train": "train"}),
        (("train2017", "val2017"), {"train2017": "train", "val2017": "val"}),
        (("images_train", "images_val", "labels"), {"images_train": "train", "images_val": "val"}),
        (
            ("imagenet21k_train", "imagenet21k_val", "imagenet21k_small_classes"),
            {"imagenet21k_train": "train", "imagenet21k_val": "val", "imagenet21k_small_classes": "small_classes"},
        ),
        (("trainset", "testset"), {"trainset": "train", "testset": "test"}),
        (("bus", "train", "tram"), {}),  # classes
        (("bullet_train", "test_tube", "validator"), {}),
        (("train_station", "train_wheel"), {}),
    ],
)
def test_splits_are_told_from_classes_by_their_names(names: Sequence[str], found: dict[str, str]) -> None:
    assert dict(splits.among(names)) == found


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz"])
@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Train", "Val"), ("x_train", "x_val", "x_small_classes"), ("dev", "train")]
)
def test_splits_never_become_classes(form: str, names: Sequence[str], photos: list[bytes], tmp_path: Path) -> None:
    source = split_folders(tmp_path / "raw", photos, names)
    (source / "__MACOSX").mkdir()
    source = source if form == "folder" else tar_of(source)
    if form == "tar.gz":
        packed = source.with_suffix(".tar.gz")
        packed.write_bytes(gzip.compress(source.read_bytes()))
        source = packed
    with pytest.raises(UserError, match="holds the splits") as caught:
        shard_into(source, tmp_path / "out", "--workers", 1)
    shown = [name for name in names if f"/{name} OUTPUT-" in str(caught.value)]
    assert len(shown) == len(names) or (form == "tar.gz" and len(shown) >= 2)  # which is read no further than needed
    assert not (tmp_path / "out").exists()


def test_splits_some_levels_below_are_found(photos: list[bytes], tmp_path: Path) -> None:
    place = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    folders(place / "train", photos, "n01440764", "n01443537")
    (place / "val").mkdir()
    (place / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(photos[0])
    for level in ("kaggle", "kaggle/ILSVRC", "kaggle/ILSVRC/Data"):
        with pytest.raises(UserError, match=r"--split val --devkit ILSVRC2012_devkit_t12\.tar\.gz"):
            shard_into(tmp_path / level, tmp_path / "out", "--workers", 1)
    assert len(wnids(shard_into(place / "train", tmp_path / "train", "--workers", 1))) == 2


def test_splits_inside_each_class_are_refused(photos: list[bytes], tmp_path: Path) -> None:
    for wnid in ("bottle", "cable"):
        folders(tmp_path / "raw" / wnid, photos, "train", "test")
    with pytest.raises(UserError, match="splits inside several of its folders"):
        shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1)
    with pytest.raises(UserError, match="holds the splits test, train"):
        shard_into(tar_of(tmp_path / "raw"), tmp_path / "out", "--workers", 1)


def test_class_tars_of_several_splits_are_refused(photos: list[bytes], tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "raw" / split).mkdir(parents=True)
        (tmp_path / "raw" / split / "a.tar").write_bytes(class_tar({"1.jpg": photos[0]}))
    for source in (tmp_path / "raw", tmp_path / "raw" / "{train,val}" / "a.tar", tar_of(tmp_path / "raw")):
        with pytest.raises(UserError, match="holds the splits train, val"):
            shard_into(source, tmp_path / "out", "--workers", 1)
    (tmp_path / "tars").mkdir()
    for split in ("train", "val"):
        (tmp_path / "tars" / f"ILSVRC2012_img_{split}.tar").write_bytes(class_tar({"1.jpg": photos[0]}))
    with pytest.raises(UserError, match=r"img_val\.tar OUTPUT-val --split val --devkit"):
        shard_into(tmp_path / "tars", tmp_path / "out", "--workers", 1)


def test_equal_names_in_two_folders_of_a_class_are_both_kept(photos: list[bytes], tmp_path: Path) -> None:
    members = {"part1/cat/1.jpg": photos[0], "part2/cat/1.jpg": photos[1], "part2/cat/2.jpg": photos[2]}
    (tmp_path / "raw.tar").write_bytes(class_tar(members))
    out = shard_into(tmp_path / "raw.tar", tmp_path / "out", "--workers", 1)
    assert keys(out) == {"cat/00000/1", "cat/00001/1", "cat/2"}
    assert not rejects(out)


# WebDataset tars


def sample_tar(path: Path, photos: list[bytes], *endings: tuple[str, str], apart: bool = False) -> Path:
    """Ten samples; ``endings``: of the other members, and their text, in which {} is the class number n % 5."""
    of_ending = [[(f"s{n:02d}.jpg", photos[n]) for n in range(10)]]
    for ending, text in endings:
        of_ending.append([(f"s{n:02d}.{ending}", text.replace("{}", str(n % 5)).encode()) for n in range(10)])
    flat = of_ending if apart else zip(*of_ending, strict=True)
    return samples(path, *(member for members in flat for member in members))


def test_a_label_of_another_ending_is_asked_for_and_taken(photos: list[bytes], tmp_path: Path) -> None:
    json_text = json.dumps({"label": 7, "n": {"class": 7}}).replace("7", "{}")
    for number in range(2):
        sample_tar(tmp_path / "raw" / f"{number:05d}.tar", photos, ("json", json_text), ("txt", "caption {}"))
    with pytest.raises(UserError, match=r"--label txt or --label json:KEY \(its keys: label\)"):
        shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1)
    with pytest.raises(UserError, match=r"--label txt or --label json:KEY"):
        shard_into(tmp_path / "raw" / "00000.tar", tmp_path / "out", "--workers", 1)
    for label in ("json:label", "json:n.class"):
        out = shard_into(tmp_path / "raw", tmp_path / label.replace(":", ""), "--label", label, "--workers", 1)
        assert {key[-2:]: number for key, number in labels(out).items()} == {f"{n:02d}": n % 5 for n in range(10)}
        assert dataset_format.read_info(out).options["label"] == label
    captions = shard_into(tmp_path / "raw", tmp_path / "txt", "--label", "txt", "--workers", 1)
    assert wnids(captions) == [f"caption {n}" for n in range(5)]
    with pytest.raises(UserError, match=r"json:nothing|no_class"):
        shard_into(tmp_path / "raw", tmp_path / "no", "--label", "json:nothing", "--workers", 1)
    assert index.main([str(tmp_path / "raw"), "--label", "json:label", "--workers", "1"]) == 0
    assert labels(tmp_path / "raw") == {f"s{n:02d}": n % 5 for n in range(10)}


@pytest.mark.parametrize("ending", ["CLS", "target.cls"])
def test_other_spellings_of_cls_are_labels(ending: str, photos: list[bytes], tmp_path: Path) -> None:
    sample_tar(tmp_path / "raw" / "00000.tar", photos, (ending, "{}"))
    assert len(wnids(shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1))) == 5
    assert index.main([str(tmp_path / "raw"), "--workers", "1"]) == 0
    assert len(wnids(tmp_path / "raw")) == 5


def test_images_before_all_labels_are_refused(photos: list[bytes], tmp_path: Path) -> None:
    sample_tar(tmp_path / "raw" / "00000.tar", photos, ("cls", "{}"), apart=True)
    with pytest.raises(UserError, match="not adjacent"):
        shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1)


def test_an_unlabelled_tar_before_the_others_hides_nothing(photos: list[bytes], tmp_path: Path) -> None:
    sample_tar(tmp_path / "raw" / "a.tar", photos)
    sample_tar(tmp_path / "raw" / "b.tar", photos, ("cls", "{}"))
    out = shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1)
    assert len(wnids(out)) == 5
    assert rejects(out) == ["no_class"] * 10


def test_class_tars_with_annotations_are_classes_when_asked_for(photos: list[bytes], tmp_path: Path) -> None:
    for wnid in ("a", "b"):
        samples(tmp_path / "raw" / f"{wnid}.tar", ("1.jpg", photos[0]), ("1.xml", b"<x/>"))
    with pytest.raises(UserError, match="--source tars if each tar is one class"):
        shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1)
    out = shard_into(tmp_path / "raw", tmp_path / "out", "--source", "tars", "--workers", 1)
    assert wnids(out) == ["a", "b"]
    assert rejects(out) == ["other_file"] * 2


@pytest.mark.parametrize("odd", ["-2", "3.0", "cat", "1e1", "nan"])
def test_a_label_that_is_no_number_among_numbers_is_named(odd: str, photos: list[bytes], tmp_path: Path) -> None:
    members = [(f"{n:02d}.jpg", photos[n]) for n in range(12)] + [(f"{n:02d}.cls", f"{n}".encode()) for n in range(11)]
    samples(tmp_path / "raw" / "a.tar", *sorted([*members, ("11.cls", odd.encode())]))
    with pytest.raises(UserError, match=f"label '{odd}'"):
        shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1)
    with pytest.raises(UserError, match=f"label '{odd}'"):
        index.main([str(tmp_path / "raw"), "--workers", "1"])


def test_gaps_in_class_numbers_are_warned_of(
    photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples(tmp_path / "a.tar", ("1.cls", b"0"), ("1.jpg", photos[0]), ("2.cls", b"5"), ("2.jpg", photos[1]))
    shard_into(tmp_path / "a.tar", tmp_path / "out", "--workers", 1)
    assert "no image of INPUT has class number 1," in capsys.readouterr().err


# what lies beside the images


def test_everything_beside_the_images_is_listed(photos: list[bytes], tmp_path: Path) -> None:
    source = folders(tmp_path / "raw", photos, "cat", "dog", each=4)
    for name in ("._1.jpg", "cat/._2.jpg", "cat/Thumbs.db", "cat/@eaDir/1.jpg/SYNOFILE_THUMB.jpg", "__MACOSX/._x.jpg",
                 ".ipynb_checkpoints/1.jpg", "dog/.ipynb_checkpoints/1.jpg", "desktop.ini"):  # fmt: skip
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(photos[0])
    (source / "empty").mkdir()
    (source / "notes.txt").write_text("x")
    (source / "loose.jpg").write_bytes(photos[1])
    expected = {
        **dict.fromkeys(("._1.jpg", "cat/._2.jpg", "cat/Thumbs.db", "dog/.ipynb_checkpoints/1.jpg"), "system_file"),
        **dict.fromkeys(("__MACOSX/._x.jpg", ".ipynb_checkpoints/1.jpg"), "system_file"),
        "cat/@eaDir/1.jpg/SYNOFILE_THUMB.jpg": "system_file",
        "desktop.ini": "system_file", "empty/": "empty_class", "notes.txt": "other_file", "loose.jpg": "no_class",
    }  # fmt: skip
    out = shard_into(source, tmp_path / "out", "--workers", 1)
    table = dataset_format.read_rejects(out, ["source", "reason"])
    found = dict(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert found == expected
    assert wnids(out) == ["cat", "dog"]
    (source / "loose.jpg").unlink()  # in a tar its folder, being the first, would be the class
    tarred = shard_into(tar_of(source), tmp_path / "tarred", "--workers", 1)
    table = dataset_format.read_rejects(tarred, ["source", "reason"])
    found = dict(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))
    del expected["loose.jpg"]
    assert found == {f"raw/{name}": reason for name, reason in expected.items()}
    assert wnids(tarred) == ["cat", "dog"]


def test_compressed_and_capital_tars_are_classes_too(photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "cat.tar").write_bytes(class_tar({"1.jpg": photos[0]}))
    (tmp_path / "raw" / "dog.tar.gz").write_bytes(gzip.compress(class_tar({"1.jpg": photos[1]})))
    (tmp_path / "raw" / "fox.TAR").write_bytes(class_tar({"1.jpg": photos[2]}))
    (tmp_path / "raw" / "owl.tgz").write_bytes(gzip.compress(class_tar({"1.jpg": photos[3]})))
    (tmp_path / "raw" / "elk.tar").write_bytes(class_tar({}))
    (tmp_path / "raw" / "notes.txt").write_text("x")
    out = shard_into(tmp_path / "raw", tmp_path / "out", "--workers", 1)
    assert wnids(out) == ["cat", "dog", "fox", "owl"]
    assert rejects(out) == ["empty_class", "other_file"]
    (tmp_path / "raw" / "dog.tar").write_bytes(class_tar({"1.jpg": photos[1]}))
    with pytest.raises(UserError, match=r"'dog\.tar' and 'dog\.tar\.gz', both of class 'dog'"):
        shard_into(tmp_path / "raw", tmp_path / "twice", "--workers", 1)
    (tmp_path / "raw" / "dog.tar").rename(tmp_path / "raw" / "dog.tar.xz")
    with pytest.raises(UserError, match=r"holds 'dog\.tar\.xz' among its tars"):
        shard_into(tmp_path / "raw", tmp_path / "xz", "--workers", 1)


def test_a_compressed_tar_among_a_release_s_class_tars_is_refused(photos: list[bytes], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "raw.tar", "w") as tar:
        add(tar, "cat.tar", class_tar({"1.jpg": photos[0]}))
        add(tar, "dog.tar.gz", gzip.compress(class_tar({"1.jpg": photos[1]})))
        add(tar, "fox.TAR", class_tar({"1.jpg": photos[2]}))
    with pytest.raises(UserError, match=r"holds the compressed tar 'dog\.tar\.gz' among class tars"):
        shard_into(tmp_path / "raw.tar", tmp_path / "out", "--workers", 1)
    with pytest.raises(UserError, match=r"holds the compressed tar 'dog\.tar\.gz' among class tars"):
        shard_into(f"pipe:cat {tmp_path}/raw.tar", tmp_path / "out", "--workers", 1)


def test_the_endings_of_other_files_are_named(
    photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folders(tmp_path / "phone", photos, "cat", "dog")
    for name in ("cat/1.HEIC", "cat/2.heic", "dog/3.mov", "LICENSE"):
        (source / name).write_bytes(b"x")
    shard_into(source, tmp_path / "out", "--workers", 1)
    assert "skipped: 4 other_file (2 .heic, 1 .mov)\n" in capsys.readouterr().out
    for image in source.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(UserError, match=r"it has 4 other_file, 2 empty_class: 2 \.heic, 1 \.mov\): check the path, or"):
        shard_into(source, tmp_path / "none", "--workers", 1)


def test_a_zip_is_to_be_unpacked(photos: list[bytes], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat/1.jpg", photos[0])
    with pytest.raises(UserError, match=r"photos\.zip' is a zip, which is not read: unpack it"):
        shard_into(tmp_path / "photos.zip", tmp_path / "out", "--workers", 1)


def test_one_class_is_a_warning(photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard_into(folders(tmp_path / "one", photos, "crane", each=2), tmp_path / "out", "--workers", 1)
    assert "belong to one class, so there is nothing to learn" in capsys.readouterr().err
    shard_into(folders(tmp_path / "two", photos, "crane", "lynx", each=2), tmp_path / "out2", "--workers", 1)
    assert "one class" not in capsys.readouterr().err
