"""verify, index, report and audit on finished datasets."""

import errno
import gc
import json
import os
import re
import shutil
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import webdataset
from scipy import stats

from data_prep import index, overlap, report, shard, verify
from data_prep.images import perceptual_hash
from data_prep.writing import tar_writer
from pipeline.dataset import format as dataset_format
from tests.data_prep import releases
from tests.data_prep.refused import Main, refused
from tests.data_prep.releases import Images, class_tar


@pytest.fixture(scope="session")
def finished(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with both splits and some rejects. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    broken = {**images["n15075141"], "n15075141_cut.JPEG": next(iter(images["n01440764"].values()))[:700]}
    source = releases.make("tar of tars", {**images, "n15075141": broken}, folder)
    return sharded(source, folder / "data", "--val-fraction", 0.25, "--samples-per-shard", 16)


def sharded(source: Path, output: Path, *more: object) -> Path:
    assert shard.main([str(argument) for argument in (source, output, "--workers", 1, *more)]) == 0
    return output


def findings(capsys: pytest.CaptureFixture[str], dataset: Path, *more: str) -> list[str]:
    capsys.readouterr()
    code = verify.main([str(dataset), "--workers", "1", "--json", *more])
    found: list[str] = json.loads(capsys.readouterr().out)["findings"]
    assert code == (1 if found else 0)
    return found


def test_verify_finds_nothing_in_what_was_made(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(capsys, finished) == []


def flip_a_byte_of_an_image(folder: Path) -> None:
    row = dataset_format.read_index(folder).to_pylist()[0]
    tar = folder / f"{row['split']}-{row['shard']:05d}.tar"
    data = bytearray(tar.read_bytes())
    data[row["offset"] + row["size"] // 2] ^= 0x10
    tar.write_bytes(data)


def change_a_class(folder: Path) -> None:
    tar = folder / "train-00000.tar"
    data = bytearray(tar.read_bytes())
    row = next(row for row in dataset_format.read_index(folder).to_pylist() if row["split"] == "train")
    at = row["offset"] + -(-row["size"] // 512) * 512 + 512
    assert data[at] == ord(str(row["label"]))
    data[at] = ord("9")
    tar.write_bytes(data)


def drop_the_labels(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "index.parquet").drop_columns("label"), folder / "index.parquet")


def cut_a_tar(folder: Path) -> None:
    tar = folder / "val-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte_of_an_image, ["train-00000.tar: its hash", "its bytes have changed"]),
        (change_a_class, ["train-00000.tar: its hash", "its .cls member says 9"]),
        (cut_a_tar, ["val-00000.tar has"]),
        (lambda folder: (folder / "train-00001.tar").unlink(), ["train-00001.tar is missing"]),
        (
            lambda folder: shutil.copy(folder / "val-00000.tar", folder / "x.tar"),
            ["x.tar does not belong to this dataset"],
        ),
        (lambda folder: (folder / "classes.parquet").unlink(), ["classes.parquet is missing"]),
        (lambda folder: (folder / "index.parquet").write_bytes(b"PAR1"), ["index.parquet can't be read"]),
        (drop_the_labels, ["index.parquet lacks the columns label"]),
        (lambda folder: shutil.copy(folder / "classes.parquet", folder / "rejects.parquet"), ["rejects.parquet has 4"]),
    ],
)
def test_verify_finds(
    damage: Callable[[Path], None],
    words: list[str],
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(finished, folder)
    damage(folder)
    found = findings(capsys, folder)
    for word in words:
        assert any(word in finding for finding in found), found


def test_an_order_by_class_is_not_random() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(20, dtype=np.int32), random.integers(5, 200, 20))
    assert verify.neighbour_z(labels) > 30
    z = [verify.neighbour_z(random.permutation(labels)) for _ in range(400)]
    assert stats.kstest(z, "norm").statistic < 0.12
    assert abs(np.mean(z)) < 0.2
    assert 0.85 < np.std(z) < 1.15


def foreign(images: Images, folder: Path) -> Path:
    """WebDataset tars written by webdataset."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with webdataset.ShardWriter(str(folder / "imagenet-train-%02d.tar"), maxcount=40, verbose=0) as sink:
            for number, wnid in enumerate(sorted(images)):
                for name, data in images[wnid].items():
                    sink.write({"__key__": Path(name).stem, "jpg": data, "cls": number, "json": {"name": name}})
        gc.collect()
    return folder


def test_index_of_foreign_tars(images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = foreign(images, tmp_path / "foreign")
    with tarfile.open(folder / "imagenet-val-00.tar", "w") as tar:
        releases.add(tar, "a/one.jpeg", images["n01440764"]["n01440764_0.JPEG"])
        releases.add(tar, "a/one.cls", b"3\n")
        releases.add(tar, "a/classless.jpg", b"x")
        releases.add(tar, "a/pictureless.cls", b"1")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "wnids").write_text("\n".join(sorted(images)))
    arguments = [str(folder), "--classes", str(tmp_path / "wnids"), "--workers", "1"]
    assert index.main(arguments) == 0
    info = dataset_format.read_info(folder)
    assert info.samples == {"train": 96, "val": 1}
    assert info.rejects == 2
    wnids = dataset_format.read_classes(folder)["wnid"].to_pylist()
    for row in dataset_format.read_index(folder).to_pylist():
        name = info.split_shards(row["split"])[row["shard"]].file_name
        data = (folder / name).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        if row["split"] == "val":
            assert (row["key"], row["label"]) == ("a/one", 3)
        else:
            assert data == images[wnids[row["label"]]][f"{row['key']}.JPEG"]
    assert {name: (folder / name).read_bytes() for name in before} == before
    # a class after another, as they were written: verify sees that, and nothing else
    found = findings(capsys, folder)
    assert len(found) == 1
    assert "the order is not random" in found[0]
    assert "--force" in refused(capsys, index.main, *arguments)
    assert index.main([*arguments, "--force"]) == 0


def test_index_of_names_and_sizes_that_no_table_holds(
    images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    with tarfile.open(folder / "train.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, data in enumerate(images["n01440764"].values()):
            name = os.fsdecode(b"caf\xe9 %d" % number)
            releases.add(tar, f"{name}.cls", b"0")
            releases.add(tar, f"{name}.jpg", data)
        releases.add(tar, os.fsdecode(b"\xe9.cls"), b"0")
        end = tar.offset
    with (folder / "train.tar").open("r+b") as file:
        file.seek(end)
        file.write(tar_writer.header("big.cls", 1) + b"0".ljust(512, b"\0") + tar_writer.header("big.jpg", 3 << 30))
        file.truncate(file.tell() + (3 << 30))
    assert index.main([str(folder), "--workers", "1"]) == 0
    keys = dataset_format.read_index(folder)["key"].to_pylist()
    assert keys == [f"caf%E9 {number}" for number in range(len(images["n01440764"]))]
    rejects = dataset_format.read_rejects(folder).to_pylist()
    assert [(row["source"], row["reason"]) for row in rejects] == [
        ("train.tar/%E9", "incomplete"),
        ("train.tar/big", "too_large"),
    ]
    assert findings(capsys, folder) == []


def test_the_index_of_our_own_tars_is_the_one_they_came_with(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for tar in finished.glob("*.tar"):
        shutil.copy(tar, folder)
    wnids = tmp_path / "wnids"
    wnids.write_text("\n".join(dataset_format.read_classes(finished)["wnid"].to_pylist()))
    assert index.main([str(folder), "--classes", str(wnids), "--workers", "2"]) == 0
    columns = ["key", "split", "shard", "offset", "size", "label"]
    assert (
        dataset_format.read_index(folder, columns).to_pylist()
        == dataset_format.read_index(finished, columns).to_pylist()
    )


def full(_: int) -> None:
    """What the system says, which knows no file's name by then."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("main", [index.main, report.main, overlap.main])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    main: Main, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = foreign(images, tmp_path / "data")
    if main is not index.main:
        index.main([str(folder)])
    monkeypatch.setattr(os, "fsync", full)
    before = sorted(tmp_path.rglob("*"))
    more: list[object] = ["--against", folder, "--out", tmp_path / "list"] if main is overlap.main else []
    assert refused(capsys, main, folder, *more).endswith(f": {os.strerror(errno.ENOSPC)}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_page_shows_the_data_set_and_needs_nothing_else(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert report.main([str(finished), "--out", str(out), "--samples", "20"]) == 0
    page = out.read_text()
    info = dataset_format.read_info(finished)
    assert f"{info.samples['train']} train + {info.samples['val']} val images of 4 classes" in page
    for text in (info.digest, "truncated", "n15075141_cut.JPEG", "tench, Tinca tinca"):
        assert text in page
    assert not re.search(r"(?:src|href)=(?![\"']?data:)", page)
    assert "<script" not in page
    assert page.count("data:image/jpeg") >= 20 + 20


def test_a_page_of_tars_made_elsewhere_shows_which_images_are_broken(images: Images, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for number, data in enumerate(images["n01440764"].values()):
            releases.add(tar, f"{number}.jpg", data if number != 3 else b"no JPEG at all")
            releases.add(tar, f"{number}.cls", b"0")
    assert index.main([str(folder), "--workers", "1"]) == 0
    assert report.main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg") == 39
    assert page.count("<span class=missing>") == 1
    assert "Could not determine" in page


def near_duplicates(photos: list[bytes]) -> dict[str, bytes]:
    """The same image smaller, compressed more, brighter."""
    pixels = simplejpeg.decode_jpeg(photos[0])
    small = cv2.resize(pixels, (pixels.shape[1] * 3 // 4, pixels.shape[0] * 3 // 4), interpolation=cv2.INTER_AREA)
    bright = cv2.convertScaleAbs(pixels, alpha=1.05, beta=6)
    encoded = {"small": (small, 90), "hard": (pixels, 45), "bright": (bright, 90)}
    return {name: simplejpeg.encode_jpeg(image, quality) for name, (image, quality) in encoded.items()}


@pytest.fixture(scope="module")
def large(images: Images) -> list[bytes]:  # noqa: ARG001
    """24 different crops of 160 px: too much detail to be near one another."""
    from sklearn.datasets import load_sample_images  # slow to import

    pictures = load_sample_images().images
    places = [(picture, top, left) for picture in (0, 1) for top in (0, 130, 260) for left in (0, 160, 320, 480)]
    crops = [np.ascontiguousarray(pictures[p][top : top + 160, left : left + 160]) for p, top, left in places]
    return [simplejpeg.encode_jpeg(crop, 92) for crop in crops]


def test_audit_finds_leaks_and_shard_leaves_them_out(
    large: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = near_duplicates(large)
    train = {f"{number}.jpg": data for number, data in enumerate(large[:16])}
    train |= {f"{name}.jpg": data for name, data in near.items()}
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n00000001.tar").write_bytes(class_tar(train))
    (tmp_path / "test").mkdir()
    test = {"x.jpg": large[0], "y.jpg": large[5], "z.jpg": large[20]}
    (tmp_path / "test" / "n00000002.tar").write_bytes(class_tar(test))
    own, other = sharded(tmp_path / "train", tmp_path / "own"), sharded(tmp_path / "test", tmp_path / "other")
    leaks = tmp_path / "leaks.tsv"
    arguments = [str(own), "--against", str(other), "--out", str(leaks), "--workers", "1", "--json"]
    capsys.readouterr()
    assert overlap.main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["exact"], facts["near"]) == (2, 3)
    lines = [line.split("\t") for line in leaks.read_text().splitlines() if not line.startswith("#")]
    kinds = {(line[0], line[1], line[2]) for line in lines}
    assert kinds == {
        ("n00000001/0", "n00000002/x", "exact"),
        ("n00000001/5", "n00000002/y", "exact"),
        *(("n00000001/" + name, "n00000002/x", "near") for name in near),
    }
    clean = sharded(tmp_path / "train", tmp_path / "clean", "--exclude", leaks)
    keys = set(dataset_format.read_index(clean, ["key"])["key"].to_pylist())
    assert keys == {f"n00000001/{number}" for number in range(16)} - {"n00000001/0", "n00000001/5"}
    capsys.readouterr()
    assert overlap.main([str(clean), *arguments[1:]]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["exact"], facts["near"]) == (0, 0)


def test_audit_against_itself_keeps_the_first_of_each(
    large: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    files = {f"{number}.jpg": data for number, data in enumerate([*large[:6], large[2], large[2]])}
    (tmp_path / "in" / "n1.tar").write_bytes(class_tar(files))
    own = sharded(tmp_path / "in", tmp_path / "own")
    capsys.readouterr()
    out = tmp_path / "twice.tsv"
    assert overlap.main([str(own), "--against", str(own), "--out", str(out), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 2


def test_neighbours_are_those_of_brute_force() -> None:
    random = np.random.default_rng(0)
    others = random.integers(1, 1 << 63, 300).astype(np.uint64)
    queries = others[random.integers(0, 300, 200)].copy()
    for number in range(200):  # flip 0 to 9 bits
        for bit in random.choice(64, number % 10, replace=False):
            queries[number] ^= np.uint64(1) << np.uint64(bit)
    for distance in (0, 2, 3, 4, 7):
        apart = np.bitwise_count(queries[:, None] ^ others[None, :])
        expected = set(zip(*map(np.ndarray.tolist, np.nonzero(apart <= distance)), strict=True))
        found = perceptual_hash.neighbours(queries, others, distance)
        assert set(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected
