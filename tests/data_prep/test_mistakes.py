"""Bad input to each command that works on finished datasets: one line that names it, exit code 2, no traceback.

Those of data_prep.shard are in test_shard.py and test_remote.py.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import index, overlap, report, shard, verify
from tests.data_prep import releases
from tests.data_prep.refused import Main, refused
from tests.data_prep.releases import Images, contents


@pytest.fixture(scope="module")
def places(images: Images, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data sets that are good, missing, unfinished or damaged, and tars to be indexed, by name. Read only."""
    folder = tmp_path_factory.mktemp("places")
    source = releases.make("tar of tars", images, folder)
    data = folder / "data"
    assert shard.main([str(source), str(data), "--samples-per-shard", "16", "--workers", "1"]) == 0
    names = "broken null old edited no_index bad_index no_tar lost_tar bad_tar bad_classes no_labels"
    for name in names.split():
        shutil.copytree(data, folder / name)
    (folder / "broken" / "dataset.json").write_text('{"name":')
    (folder / "null" / "dataset.json").write_text("null")
    info = json.loads((data / "dataset.json").read_text())
    (folder / "old" / "dataset.json").write_text(json.dumps({**info, "format_version": 0}))
    (folder / "edited" / "dataset.json").write_text(json.dumps({**info, "classes": 7}))
    (folder / "no_index" / "index.parquet").unlink()
    (folder / "bad_index" / "index.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pq.read_table(data / "index.parquet").drop_columns("label"), folder / "no_labels" / "index.parquet")
    (folder / "bad_classes" / "classes.parquet").write_bytes(b"PAR1 and no more")
    (folder / "lost_tar" / "train-00000.tar").unlink()  # one, as which of several is named is the workers' race
    for number in range(6):
        (folder / "no_tar" / f"train-{number:05d}.tar").unlink()
        (folder / "bad_tar" / f"train-{number:05d}.tar").write_bytes(b"nothing of it is left")
    (folder / "bare").mkdir()
    (folder / "file").write_text("a file")
    (folder / "empty_list").write_text("\n")
    (folder / "short_list").write_text("n01440764\n")
    (folder / "list_twice").write_text("n01440764\nn01440764\n")
    jpeg = images["n01440764"]["n01440764_0.JPEG"]
    members = {
        "numbers": {"a.jpg": jpeg, "a.cls": b"3"},
        "words": {"a.jpg": jpeg, "a.cls": b"n02119789"},
        "no_cls": {"a.jpg": jpeg, "b.jpg": jpeg},
        "no_jpeg": {"a.txt": b"text", "a.cls": b"1"},
        "huge_class": {"a.jpg": jpeg, "a.cls": b"99999999999"},
        "cut": {"a.jpg": jpeg, "a.cls": b"3"},
    }
    for name, files in members.items():
        (folder / name).mkdir()
        with tarfile.open(folder / name / "train-0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for member, content in files.items():
                releases.add(tar, member, content)
    cut = folder / "cut" / "train-0.tar"
    cut.write_bytes(cut.read_bytes()[:700])
    (folder / "no_tars").mkdir()
    (folder / "no_tars" / "train-0.tar").write_bytes(b"no tar" * 1000)
    found = {path.name: str(path) for path in folder.iterdir()}
    return {**found, "none": str(folder / "none")}


def check(
    capsys: pytest.CaptureFixture[str], places: dict[str, str], main: Main, arguments: list[str], parts: list[str]
) -> None:
    folder = Path(places["none"]).parent
    before = {name: len(data) for name, data in contents(folder).items()}
    line = refused(capsys, main, *(argument.format(**places) for argument in arguments))
    for part in parts:
        assert part.format(**places) in line, line
    assert {name: len(data) for name, data in contents(folder).items()} == before  # nothing is left behind


UNREADABLE = [
    (["{none}"], ["{none}", "does not exist", "vit shard"]),
    (["{file}"], ["{file}"]),
    (["{bare}"], ["{bare}", "no dataset.json"]),
    (["{broken}"], ["{broken}", "is damaged"]),
    (["{null}"], ["{null}", "is damaged"]),
    (["{old}"], ["{old}", "format_version 0"]),
    (["{edited}"], ["{edited}", "edited"]),
]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        *UNREADABLE,
        ([], ["DATASET"]),
        (["{data}", "--workers", "0"], ["--workers 0"]),
        (["{data}", "--workers", "many"], ["many"]),
        (["{data}", "--decod"], ["--decod"]),
    ],
)
def test_verify(
    arguments: list[str], parts: list[str], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, places, verify.main, arguments, parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["{none}"], ["FOLDER", "{none}", "does not exist"]),
        (["{file}"], ["FOLDER", "{file}"]),
        (["{bare}"], ["FOLDER", "{bare}", "contains no .tar files"]),
        (["{data}"], ["{data}", "--force"]),
        (["{no_tars}"], ["train-0.tar", "is damaged"]),
        (["{cut}"], ["train-0.tar", "is damaged"]),
        (["{no_cls}"], ["{no_cls}", "no tar has a sample with a JPEG and a .cls member"]),
        (["{no_jpeg}"], ["{no_jpeg}", "no tar has a sample with a JPEG and a .cls member"]),
        (["{numbers}", "--classes", "21k-p"], ["--classes 21k-p"]),
        (["{numbers}", "--classes", "{none}"], ["--classes", "{none}"]),
        (["{numbers}", "--classes", "{empty_list}"], ["--classes", "{empty_list}", "is empty"]),
        (["{numbers}", "--classes", "{list_twice}"], ["--classes", "{list_twice}", "twice"]),
        (["{numbers}", "--classes", "{short_list}"], ["class number 3, but the list has 1 classes", "--classes"]),
        (["{words}", "--classes", "{short_list}"], ["--classes", "lacks the class 'n02119789'"]),
        (["{huge_class}"], ["class number 99999999999"]),
        (["{numbers}", "--workers", "0"], ["--workers 0"]),
        (["{numbers}", "--split", ""], ["--split ''"]),
        (["{numbers}", "--split", "a/b"], ["--split 'a/b'"]),
        ([], ["FOLDER"]),
    ],
)
def test_index(
    arguments: list[str], parts: list[str], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, places, index.main, arguments, parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        *UNREADABLE,
        (["{no_index}"], ["{no_index}", "index.parquet", "is missing"]),
        (["{bad_index}"], ["{bad_index}", "index.parquet", "is damaged"]),
        (["{no_labels}"], ["{no_labels}", "index.parquet", "lacks the columns label"]),
        (["{bad_classes}"], ["{bad_classes}", "classes.parquet", "is damaged"]),
        (["{no_tar}"], ["{no_tar}", "train-0000", "is missing"]),
        (["{bad_tar}"], ["{bad_tar}", "train-0000", "is damaged", "vit verify"]),
        (["{data}", "--samples", "-1"], ["--samples -1"]),
        (["{data}", "--seed", "-1"], ["--seed -1"]),
        (["{data}", "--out", "{none}/page.html"], ["--out", "{none}"]),
        (["{data}", "--out", "{bare}"], ["--out", "{bare}", "is a folder"]),
        ([], ["DATASET"]),
    ],
)
def test_report(
    arguments: list[str], parts: list[str], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, places, report.main, arguments, parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        *[([*dataset, "--against", "{data}"], parts) for dataset, parts in UNREADABLE],
        *[(["{data}", "--against", *other], parts) for other, parts in UNREADABLE],
        (["{data}"], ["--against"]),
        (["{no_index}", "--against", "{data}"], ["{no_index}", "index.parquet", "is missing"]),
        (["{data}", "--against", "{bad_index}"], ["{bad_index}", "index.parquet", "is damaged"]),
        (["{data}", "--against", "{lost_tar}"], ["{lost_tar}", "train-00000.tar", "is missing"]),
        (["{data}", "--against", "{data}", "--distance", "9"], ["--distance 9"]),
        (["{data}", "--against", "{data}", "--correlation", "0"], ["--correlation 0"]),
        (["{data}", "--against", "{data}", "--workers", "0"], ["--workers 0"]),
        (["{data}", "--against", "{data}", "--out", "{none}/leaks.tsv"], ["--out", "{none}"]),
        (["{data}", "--against", "{data}", "--out", "{bare}"], ["--out", "{bare}", "is a folder"]),
    ],
)
def test_audit(
    arguments: list[str], parts: list[str], places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, places, overlap.main, arguments, parts)
