"""Class numbers of WebDataset tars: what they mean by the images' names, and images without a class."""

import json
import random
from pathlib import Path

import pytest

from data_prep import index
from data_prep.planning import assignment, stream_buckets
from data_prep.sources.rows import ImageRow
from pipeline.core.errors import UserError
from pipeline.dataset import class_lists
from pipeline.dataset import format as dataset_format
from tests.data_prep.datasets import keys, labels, rejects, samples, shard_into, wnids
from tests.data_prep.releases import contents

WORKERS = ("--workers", 1)


def known(choice: str) -> list[str]:
    wnids = class_lists.listed(choice)
    assert wnids is not None
    return wnids


def tar_of(path: Path, photos: list[bytes], classes: dict[int, str], each: int = 3) -> Path:
    """``each`` images per class number, called by the wnid."""
    members = []
    for number, wnid in classes.items():
        for image in range(each):
            key = f"{wnid}_{image}"
            members += [(f"{key}.jpg", photos[(number + image) % len(photos)]), (f"{key}.cls", b"%d" % number)]
    return samples(path, *members)


def some(order: list[str]) -> dict[int, str]:
    """Numbers and wnids that only this order of the known ones has, with gaps between them."""
    return {number: order[number] for number in (0, len(order) // 2, len(order) - 2, len(order) - 1)}


def numbers_by_wnid(dataset: Path) -> dict[str, int]:
    return {key.partition("_")[0]: number for key, number in labels(dataset).items()}


@pytest.mark.parametrize("order", ["fall11", "google21k", "imagenet12k", "imagenet1k"])
@pytest.mark.parametrize("asked", ["derive", "google21k", "fall11"])
def test_numbers_mean_the_classes_that_the_names_tell(
    order: str, asked: str, photos: list[bytes], tmp_path: Path
) -> None:
    classes = some(known(order))
    tar_of(tmp_path / "raw" / "a.tar", photos, classes)
    out = shard_into(tmp_path / "raw", tmp_path / "out", "--classes", asked, *WORKERS)
    assert index.main([str(tmp_path / "raw"), "--classes", asked, *map(str, WORKERS)]) == 0
    expected = {wnid: known(order if asked == "derive" else asked).index(wnid) for wnid in classes.values()}
    assert numbers_by_wnid(tmp_path / "raw") == expected
    if asked == "derive":  # of shard: the classes that are there
        expected = {wnid: number for number, wnid in enumerate(sorted(classes.values()))}
    assert numbers_by_wnid(out) == expected
    assert keys(out) == {f"{wnid}_{image}" for wnid in classes.values() for image in range(3)}


def test_an_order_of_its_own_is_known_if_no_number_is_missing(photos: list[bytes], tmp_path: Path) -> None:
    classes = dict(enumerate(["n15075141", "n01440764", "n04557648", "n02119789"]))
    raw = tar_of(tmp_path / "raw" / "a.tar", photos, classes).parent
    out = shard_into(raw, tmp_path / "out", *WORKERS)
    assert wnids(out) == sorted(classes.values())
    piped = shard_into(f"pipe:cat {raw}/a.tar", tmp_path / "piped", "--source", "webdataset", "--name", "out", *WORKERS)
    assert contents(piped) == contents(out)
    tasks = ("--tasks", 2, "--name", "out", "--samples-per-shard", 8)
    for step in (("--task", 0), ("--task", 1), ("--finalize",)):  # which read the stream again
        shard_into(f"pipe:cat {raw}/a.tar", tmp_path / "tasks", "--source", "webdataset", *tasks, *step, *WORKERS)
    cut = shard_into(raw, tmp_path / "cut", "--name", "out", "--samples-per-shard", 8, *WORKERS)
    assert contents(tmp_path / "tasks") == contents(cut)
    numbers = shard_into(raw, tmp_path / "numbers", "--classes", "numbers", *WORKERS)
    assert wnids(numbers) == ["00000", "00001", "00002", "00003"]
    assert index.main([str(raw), *map(str, WORKERS)]) == 0
    assert wnids(raw) == list(classes.values())
    again = shard_into(raw, tmp_path / "again", "--name", "out", *WORKERS)  # by the list that is now beside the tar
    assert contents(again) == contents(out)


def test_images_of_a_stream_lie_where_their_shards_will_read_them(tmp_path: Path) -> None:
    """By the key that they will have once their numbers are known, or a shard would read from all 128 files."""
    rows = [ImageRow("00007", f"n01440764_{image}.JPEG", "a.tar", 0, 3, b"abc") for image in range(40)]
    keys = [f"n01440764_{image}" for image in range(40)]
    files = [row.file for row in stream_buckets.lay_down(iter(rows), tmp_path, 5) if isinstance(row, ImageRow)]
    expected = [int(found) * stream_buckets.BUCKETS >> 64 for found in assignment.hashes(keys, 5)]
    assert [int(file.rpartition("-")[2]) for file in files] == expected


def test_an_unknown_order_is_refused(photos: list[bytes], tmp_path: Path) -> None:
    shuffled = known("imagenet1k")
    random.Random(0).shuffle(shuffled)
    raw = tar_of(tmp_path / "raw" / "a.tar", photos, some(shuffled)).parent
    with pytest.raises(UserError, match=r"in none of the orders .* --classes FILE"):
        shard_into(raw, tmp_path / "out", *WORKERS)
    with pytest.raises(UserError, match=r"in none of the orders .* --classes FILE"):
        index.main([str(raw), *map(str, WORKERS)])
    with pytest.raises(UserError, match=r"in none of the orders"):  # 1,000 sorted ids, which would all be wrong
        shard_into(raw, tmp_path / "out", "--classes", "imagenet1k", *WORKERS)
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(shuffled))
    out = shard_into(raw, tmp_path / "out", "--classes", file, *WORKERS)
    assert index.main([str(raw), "--classes", str(file), *map(str, WORKERS)]) == 0
    expected = {wnid: number for number, wnid in some(shuffled).items()}
    assert numbers_by_wnid(out) == numbers_by_wnid(raw) == expected


def test_groups_of_classes_stay_numbers(photos: list[bytes], tmp_path: Path) -> None:
    members = []
    for number, wnid in enumerate(("n01440764", "n02119789", "n04557648", "n15075141")):
        members += [(f"{wnid}_0.jpg", photos[number]), (f"{wnid}_0.cls", b"%d" % (number // 2))]
    raw = samples(tmp_path / "raw" / "a.tar", *members).parent
    names = tmp_path / "names.txt"
    names.write_text("animal\nthing\n")
    assert wnids(shard_into(raw, tmp_path / "out", *WORKERS)) == ["00000", "00001"]
    assert wnids(shard_into(raw, tmp_path / "named", "--classes", names, *WORKERS)) == ["animal", "thing"]
    assert index.main([str(raw), "--classes", str(names), *map(str, WORKERS)]) == 0
    assert wnids(raw) == ["animal", "thing"]


def test_names_of_ones_own_are_kept_for_images_called_by_wnid(photos: list[bytes], tmp_path: Path) -> None:
    raw = tar_of(tmp_path / "raw" / "a.tar", photos, {0: "n01440764", 1: "n02119789"}).parent
    names = tmp_path / "names.txt"
    names.write_text("tench\nfox\n")
    assert wnids(shard_into(raw, tmp_path / "out", "--classes", names, *WORKERS)) == ["tench", "fox"]
    assert index.main([str(raw), "--classes", str(names), *map(str, WORKERS)]) == 0
    assert wnids(raw) == ["tench", "fox"]
    assert numbers_by_wnid(raw) == {"n01440764": 0, "n02119789": 1}


def test_a_number_beyond_the_list_is_refused(photos: list[bytes], tmp_path: Path) -> None:
    raw = samples(tmp_path / "raw" / "a.tar", ("1.jpg", photos[0]), ("1.cls", b"1000")).parent
    for command in (
        lambda: shard_into(raw, tmp_path / "out", "--classes", "imagenet1k", *WORKERS),
        lambda: index.main([str(raw), "--classes", "imagenet1k", *map(str, WORKERS)]),
    ):
        with pytest.raises(UserError, match="class number 1000, but the list has 1,000 classes: name the list"):
            command()


def test_numbers_are_for_webdataset_tars(photos: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "raw" / "cat").mkdir(parents=True)
    (tmp_path / "raw" / "cat" / "1.jpg").write_bytes(photos[0])
    with pytest.raises(UserError, match="--classes numbers is for WebDataset tars"):
        shard_into(tmp_path / "raw", tmp_path / "out", "--classes", "numbers", *WORKERS)


# images without a class


def timm_tar(path: Path, photos: list[bytes], labels_12k: list[int]) -> Path:
    """As timm's imagenet-22k-wds: the 12k class of each image in its .json member, -1 if it is in none of them."""
    members = []
    for number, label_12k in enumerate(labels_12k):
        more = json.dumps({"label": 7, "label_12k": label_12k})
        members += [(f"s{number:02d}.cls", b"7"), (f"s{number:02d}.jpg", photos[number % len(photos)])]
        members += [(f"s{number:02d}.json", more.encode())]
    return samples(path, *members)


@pytest.mark.parametrize("label", ["json:label_12k", ""])
def test_images_without_a_class_are_skipped_and_listed(
    label: str, photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [0, -1, 1, -1, 1, *[-1] * 20]  # most: more than --failure-budget would allow of defects
    if label:
        raw = timm_tar(tmp_path / "raw" / "a.tar", photos, numbers).parent
    else:
        members = [(f"s{n:02d}.jpg", photos[n % len(photos)]) for n in range(len(numbers))]
        members += [(f"s{n:02d}.cls", b"%d\n" % number) for n, number in enumerate(numbers)]
        raw = samples(tmp_path / "raw" / "a.tar", *sorted(members)).parent
    options = ("--label", label) if label else ()
    out = shard_into(raw, tmp_path / "out", *options, *WORKERS)
    assert "skipped: 22 unlabelled" in capsys.readouterr().out
    assert index.main([str(raw), *options, *map(str, WORKERS)]) == 0
    said = capsys.readouterr().out
    assert "skipped: 22 unlabelled" in said
    assert f"all skipped files are listed in {raw / 'rejects.parquet'}" in said
    assert {key.rpartition("/")[2]: number for key, number in labels(out).items()} == {"s00": 0, "s02": 1, "s04": 1}
    assert labels(raw) == {"s00": 0, "s02": 1, "s04": 1}
    assert rejects(out) == rejects(raw) == ["unlabelled"] * 22
    table = dataset_format.read_rejects(raw, ["source", "detail"])
    assert table["source"][0].as_py() == "a.tar/s01"
    assert table["detail"][0].as_py() == "the label -1 marks an image without a class"


def test_tars_without_any_class_are_refused(photos: list[bytes], tmp_path: Path) -> None:
    raw = timm_tar(tmp_path / "raw" / "a.tar", photos, [-1] * 12).parent
    expected = r"^(INPUT|FOLDER) '.*': all 12 labelled images have label -1, .*: name another member with --label$"
    with pytest.raises(UserError, match=expected):
        shard_into(raw, tmp_path / "out", "--label", "json:label_12k", *WORKERS)
    with pytest.raises(UserError, match=expected):
        index.main([str(raw), "--label", "json:label_12k", *map(str, WORKERS)])


@pytest.mark.parametrize("ending", ["webp", "png", "image.jpg"])
def test_images_that_are_no_jpegs_are_named_with_the_remedy(
    ending: str, photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [(f"s{n}.cls", b"%d" % n) for n in range(3)] + [(f"s{n}.{ending}", photos[n]) for n in range(3)]
    raw = samples(tmp_path / "raw" / "a.tar", *sorted(members)).parent
    with pytest.raises(UserError) as caught:
        index.main([str(raw), *map(str, WORKERS)])
    assert f"(a.tar/s0 is .{ending}), and training reads JPEG alone: write JPEGs of them with" in str(caught.value)
    assert f"'vit shard {raw} OUTPUT'" in str(caught.value)
    samples(raw / "a.tar", *sorted(members), ("t.cls", b"1"), ("t.jpg", photos[0]))
    assert index.main([str(raw), *map(str, WORKERS)]) == 0
    assert "skipped: 3 not_jpeg" in capsys.readouterr().out
    assert len(keys(shard_into(raw, tmp_path / "out", *WORKERS))) == 4
