"""Miniatures of the ImageNet releases, and of datasets from other tools: classes, splits and names come out right."""

import gc
import hashlib
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import import_peer
from data_prep import shard
from pipeline.core import cli, errors
from pipeline.dataset import class_lists
from pipeline.dataset import format as dataset_format
from tests.data_prep import releases
from tests.data_prep.datasets import shard_into
from tests.data_prep.releases import Images, add, contents, devkit, recoded, unpack, write_webdataset


def by_key(dataset: Path) -> dict[str, str]:
    """Key -> wnid."""
    wnids = dataset_format.read_classes(dataset)["wnid"].to_pylist()
    return {row["key"]: wnids[row["label"]] for row in dataset_format.read_index(dataset, ["key", "label"]).to_pylist()}


def test_the_2012_train_tar(photos: list[bytes], tmp_path: Path) -> None:
    """All 1,000 classes, each a tar of <wnid>_<number>.JPEG; a CMYK JPEG among them, and the PNG named .JPEG."""
    wnids = class_lists.listed("imagenet1k") or []
    images = {
        wnid: {f"{wnid}_{number * 37 + 26}.JPEG": photos[(index + number) % 96] for number in (270, 3)}
        for index, wnid in enumerate(wnids)
    }
    images["n01440764"] = {"n01440764_10026.JPEG": photos[0], "n01440764_10027.JPEG": photos[1]}
    images["n02105855"] = {"n02105855_2933.JPEG": recoded(photos[2], "PNG"), "n02105855_1.JPEG": photos[3]}
    images["n01739381"] = {"n01739381_1309.JPEG": recoded(photos[4], "JPEG", "CMYK")}
    source = releases.tar_of_tars(images, tmp_path / "ILSVRC2012_img_train.tar")
    out = shard_into(source, tmp_path / "out", "--classes", "imagenet1k", "--name", "imagenet1k", "--seed", 1)
    info = dataset_format.read_info(out)
    assert (info.classes, info.samples, info.rejects) == (1000, {"train": 1999}, 0)
    assert by_key(out) == {Path(name).stem: wnid for wnid, files in images.items() for name in files}
    rows = {row["key"]: row for row in dataset_format.read_index(out).to_pylist()}
    assert (rows["n01440764_10026"]["label"], rows["n02105855_2933"]["label"]) == (0, wnids.index("n02105855"))
    recodes = {key: row["recoded"] for key, row in rows.items() if row["recoded"]}
    assert recodes == {"n02105855_2933": "png", "n01739381_1309": "cmyk"}
    names = dataset_format.read_classes(out)["name"].to_pylist()
    assert names[0] == "tench, Tinca tinca"


@pytest.mark.parametrize("unpacked", [False, True])
def test_validation_images_get_the_classes_of_their_numbers(
    images: Images, photos: list[bytes], tmp_path: Path, unpacked: bool
) -> None:
    wnids = sorted(images)
    truth = [wnids[number * 7 % 4] for number in range(40)]
    kit = devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", wnids, truth)
    if unpacked:
        with tarfile.open(kit) as tar:
            unpack(tar, tmp_path / "kit")
        kit = tmp_path / "kit"
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 41)]
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in np.random.default_rng(0).permutation(40):  # the tar's order isn't the names'
            add(tar, names[number], photos[number])
    out = shard_into(tmp_path / "ILSVRC2012_img_val.tar", tmp_path / "out", "--split", "val", "--devkit", kit)
    assert by_key(out) == {name.removesuffix(".JPEG"): wnid for name, wnid in zip(names, truth, strict=True)}
    named = dict(
        zip(*(dataset_format.read_classes(out)[column].to_pylist() for column in ("wnid", "name")), strict=True)
    )
    assert named == {wnid: f"name of {wnid}" for wnid in wnids}
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, name in enumerate(names):
        (loose / name).write_bytes(photos[number])
    again = shard_into(loose, tmp_path / "again", "--split", "val", "--devkit", kit, "--name", "out")
    assert contents(again) == contents(out)


def test_a_validation_tar_without_devkit_is_refused(
    photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        add(tar, "ILSVRC2012_val_00000001.JPEG", photos[0])
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: shard.main([str(tmp_path / "val.tar"), str(tmp_path / "out")]))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--devkit" in line


@pytest.mark.parametrize("way", ["folder", "braces", "pipe"])
def test_foreign_webdataset_tars(images: Images, tmp_path: Path, way: str) -> None:
    tars = write_webdataset(images, tmp_path / "foreign")
    (tmp_path / "wnids.txt").write_text("\n".join(sorted(images)))
    options = ("--classes", tmp_path / "wnids.txt", "--name", "out", "--samples-per-shard", 16)
    reference = shard_into(releases.make("tar of tars", images, tmp_path), tmp_path / "reference", *options)
    braces = f"{tmp_path}/foreign/shard-{{000..{len(tars) - 1:03d}}}.tar"
    source = {"folder": str(tmp_path / "foreign"), "braces": braces, "pipe": f"pipe:cat {braces}"}[way]
    out = shard_into(source, tmp_path / "out", *options)
    assert contents(out) == contents(reference)


@pytest.mark.parametrize(
    ("choice", "count", "first", "last"),
    [
        ("fall11", 21_841, "n00004475", "n15102894"),
        ("google21k", 21_843, "n00004475", "n15102894"),
        ("imagenet1k", 1_000, "n01440764", "n15075141"),
    ],
)
def test_class_lists(choice: str, count: int, first: str, last: str) -> None:
    wnids = class_lists.listed(choice)
    assert wnids is not None
    assert len(wnids) == len(set(wnids)) == count
    assert wnids == sorted(wnids)
    assert (wnids[0], wnids[-1]) == (first, last)


def test_class_lists_differ_as_published() -> None:
    fall11, google, imagenet1k = (set(class_lists.listed(name) or []) for name in ("fall11", "google21k", "imagenet1k"))
    assert google - fall11 == {"n03931044", "n09859684"}
    assert fall11 <= google
    assert imagenet1k - fall11 == imagenet1k - google == {"n04399382"}
    assert class_lists.name_of("n01440764") == "tench, Tinca tinca"
    assert class_lists.name_of("my_class") == "my_class"


def test_winter21_is_all_of_its_classes() -> None:
    counts = {f"n{number:08d}": 1 for number in range(class_lists.WINTER21_CLASSES)}
    assert class_lists.derived("winter21", counts) == sorted(counts)
    counts.popitem()
    with pytest.raises(errors.UserError, match="19,167"):
        class_lists.derived("winter21", counts)


def test_21k_p_keeps_classes_of_more_than_500_and_holds_out_the_first_50(photos: list[bytes], tmp_path: Path) -> None:
    big = {f"n00000001_{number:04d}.JPEG": photos[number % 96] for number in range(501)}
    small = {f"n00000002_{number:04d}.JPEG": photos[number % 96] for number in range(500)}
    source = releases.tar_of_tars({"n00000001": big, "n00000002": small}, tmp_path / "whole.tar")
    out = shard_into(source, tmp_path / "out", "--classes", "21k-p", "--verify", "header")
    info = dataset_format.read_info(out)
    assert (info.classes, info.samples) == (1, {"train": 451, "val": 50})
    rows = dataset_format.read_index(out, ["key", "split"]).to_pylist()
    held_out = sorted(row["key"] for row in rows if row["split"] == "val")
    assert held_out == [f"n00000001_{number:04d}" for number in range(50)]
    reasons = dataset_format.read_rejects(out, ["reason"])["reason"].to_pylist()
    assert reasons == ["class_not_listed"] * 500


def test_listed_classes_keep_their_indices_whatever_the_input_holds(images: Images, tmp_path: Path) -> None:
    out = shard_into(releases.make("folder of tars", images, tmp_path), tmp_path / "out", "--classes", "imagenet1k")
    info = dataset_format.read_info(out)
    listed = class_lists.listed("imagenet1k") or []
    assert info.classes == 1000
    assert info.classes_digest == hashlib.sha256("\n".join(listed).encode()).hexdigest()[:32]
    assert by_key(out) == {Path(name).stem: wnid for wnid, files in images.items() for name in files}


def test_imagenet_v2_names_its_folders_by_class_number(photos: list[bytes], tmp_path: Path) -> None:
    """Folders "0" to "999", which sort as "0", "1", "10", "100": each image goes to the class of its number."""
    raw = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        folder = raw / str(number)
        folder.mkdir(parents=True)
        (folder / f"{number:04x}.jpeg").write_bytes(photos[number % len(photos)])
    found = by_key(shard_into(raw, tmp_path / "v2", "--classes", "imagenet1k", "--split", "test", "--workers", 1))
    wnids = class_lists.listed("imagenet1k") or []
    assert found == {f"{wnid}/{number:04x}": wnid for number, wnid in enumerate(wnids)}
    (raw / "1000").mkdir()
    (raw / "1000" / "a.jpeg").write_bytes(photos[0])
    with pytest.raises(errors.UserError, match=r"class number 1000, but the class list has 1000 classes"):
        shard_into(raw, tmp_path / "again", "--classes", "imagenet1k", "--split", "test", "--workers", 1)


def test_folders_whose_numbers_are_the_classes_names_keep_them(photos: list[bytes], tmp_path: Path) -> None:
    raw, names = tmp_path / "digits", tmp_path / "names.txt"
    for digit in ("7", "3", "1"):
        (raw / digit).mkdir(parents=True)
        (raw / digit / "a.jpg").write_bytes(photos[int(digit)])
    names.write_text("7\n3\n1\n")
    assert by_key(shard_into(raw, tmp_path / "out", "--classes", names)) == {"7/a": "7", "3/a": "3", "1/a": "1"}


def test_excluded_keys_are_left_out_and_counted(images: Images, tmp_path: Path) -> None:
    gone = [Path(name).stem for name in list(images["n01440764"])[:3]]
    (tmp_path / "leaks.tsv").write_text("# key\tother\n" + "".join(f"{key}\tx\tnear\t0.97\n" for key in gone))
    source = releases.make("tar of tars", images, tmp_path)
    out = shard_into(source, tmp_path / "out", "--exclude", tmp_path / "leaks.tsv")
    assert by_key(out).keys() == {Path(name).stem for files in images.values() for name in files} - set(gone)
    assert dataset_format.read_rejects(out, ["reason"])["reason"].to_pylist() == ["excluded"] * 3


@pytest.mark.parametrize("place", ["itself", "inside", "deep inside", "beside the tar"])
def test_output_and_input_are_apart(
    images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "raw").mkdir()
    if place == "beside the tar":
        source = releases.make("tar of tars", images, tmp_path / "raw")
        output = tmp_path / "raw"
    else:
        source = releases.make("folder of folders", images, tmp_path)
        output = source / {"itself": ".", "inside": "out", "deep inside": "a/b/out"}[place]
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: shard.main([str(source), str(output)]))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give another folder" in line
    assert contents(tmp_path) == before


def test_timm_info_and_json_agree(images: Images, tmp_path: Path) -> None:
    out = shard_into(releases.make("tar of tars", images, tmp_path), tmp_path / "out", "--val-fraction", 0.25)
    info = dataset_format.read_info(out)
    timm_info = json.loads((out / "_info.json").read_text())
    assert {split: facts["num_samples"] for split, facts in timm_info["splits"].items()} == info.samples


@pytest.mark.peers
def test_timm_reads_it(images: Images, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_peer("timm")
        from timm.data.readers.reader_wds import ReaderWds  # a peer

        out = shard_into(releases.make("tar of tars", images, tmp_path), tmp_path / "out", "--val-fraction", 0.25)
        info = dataset_format.read_info(out)
        for split, count in info.samples.items():
            reader = ReaderWds(root=str(out), split=split, batch_size=1)
            assert len(reader) == count
            found = [(sample[0].size, int(sample[1])) for sample in reader]
            assert len(found) == count
        gc.collect()
