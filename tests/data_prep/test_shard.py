"""data_prep.shard on every raw form: what is written, and that nothing but the images decides it."""

import gc
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset

from data_prep import shard
from pipeline.core.version import VERSION
from pipeline.dataset import format as dataset_format
from tests.data_prep import releases
from tests.data_prep.refused import refused
from tests.data_prep.releases import FORMS, Images, contents

OPTIONS = ("--val-fraction", "0.25", "--samples-per-shard", "16", "--name", "mini", "--seed", "3")


def make(source: Path, output: Path, *more: object) -> Path:
    arguments = [source, output, *OPTIONS, *more]
    assert shard.main([str(argument) for argument in arguments]) == 0
    return output


@pytest.fixture(scope="session")
def reference(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    return make(releases.make("tar of tars", images, folder), folder / "data", "--workers", 1)


def test_it_needs_no_installation(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that holds constraints.txt's packages, the code is only a folder: pip knows nothing of it."""
    monkeypatch.setattr(metadata.Distribution, "discover", lambda **_: iter(()))
    info = dataset_format.read_info(
        make(releases.make("folder of tars", images, tmp_path), tmp_path / "data", "--workers", 1)
    )
    monkeypatch.undo()
    assert info.tool_version == VERSION


def test_the_data_set_is_the_disk_contract(reference: Path, images: Images) -> None:
    info = dataset_format.read_info(reference)
    everything = {Path(name).stem: (wnid, data) for wnid, files in images.items() for name, data in files.items()}
    assert sum(info.samples.values()) == len(everything) == 96
    assert info.samples["val"] == pytest.approx(96 / 4, abs=2)
    assert info.classes == 4
    wnids = dataset_format.read_classes(reference)["wnid"].to_pylist()
    assert wnids == sorted(images)
    rows = dataset_format.read_index(reference).to_pylist()
    found = {}
    for row in rows:
        tar = reference / f"{row['split']}-{row['shard']:05d}.tar"
        with tar.open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        assert everything[row["key"]] == (wnids[row["label"]], data)
        found[row["key"]] = row
    assert found.keys() == everything.keys()
    for piece in info.shards:
        with tarfile.open(reference / piece.file_name) as tar:
            names = tar.getnames()
            members = tar.getmembers()
        assert [Path(name).suffix for name in names] == [".cls", ".jpg"] * piece.samples or [
            Path(name).suffix for name in names
        ] == [".jpg", ".cls"] * piece.samples
        assert all((m.mtime, m.uid, m.gid) == (members[0].mtime, 0, 0) for m in members)
    assert len(dataset_format.read_rejects(reference)) == 0


def test_classes_lie_mixed_in_every_shard(reference: Path) -> None:
    rows = dataset_format.read_index(reference, ["split", "label"])
    labels = rows["label"].to_numpy()[np.array(rows["split"].cast("string").to_pylist()) == "train"]
    assert len(set(labels[:16].tolist())) >= 3
    assert (np.diff(labels) != 0).mean() > 0.4


def test_stock_webdataset_reads_it(reference: Path, images: Images) -> None:
    info = dataset_format.read_info(reference)
    urls = [str(reference / piece.file_name) for piece in info.split_shards("train")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        reader = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("__key__", "jpg", "cls")
        samples = list(reader)
        del reader
        gc.collect()
    assert len(samples) == info.samples["train"]
    wnids = sorted(images)
    for key, pixels, label in samples:
        assert pixels.ndim == 3
        assert key.startswith(wnids[label])


@pytest.mark.peers
def test_datasets_reads_it(reference: Path, images: Images, tmp_path: Path) -> None:
    import datasets  # a peer

    files = sorted(str(path) for path in reference.glob("train-*.tar"))
    loaded = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))
    info = dataset_format.read_info(reference)
    assert len(loaded) == info.samples["train"]
    for row in loaded:
        assert row["__key__"].startswith(sorted(images)[int(row["cls"])])
        assert row["jpg"].size[0] > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_images_give_the_same_bytes(
    reference: Path, images: Images, tmp_path: Path, form: str, tasks: int, workers: int
) -> None:
    source = releases.make(form, images, tmp_path)
    out, work = tmp_path / "out", ("--workers", workers)
    if tasks == 1:
        make(source, out, *work)
    else:
        for task in (2, 0, 1):  # in any order
            make(source, out, *work, "--task", task, "--tasks", tasks)
            assert not (out / "dataset.json").exists()
        make(source, out, *work, "--tasks", tasks, "--finalize")
    assert contents(out) == contents(reference)


def test_another_seed_gives_another_order_of_the_same_images(reference: Path, images: Images, tmp_path: Path) -> None:
    other = make(releases.make("folder of tars", images, tmp_path), tmp_path / "out", "--seed", 4)
    keys = [dataset_format.read_index(folder, ["key"])["key"].to_pylist() for folder in (reference, other)]
    assert sorted(keys[0]) == sorted(keys[1])
    assert keys[0] != keys[1]


def test_kill_9_at_random_moments_and_again_gives_the_same_bytes(
    reference: Path, images: Images, tmp_path: Path
) -> None:
    source = releases.make("tar of tars", images, tmp_path)
    command = [sys.executable, "-m", "data_prep.shard", str(source), str(tmp_path / "out"), *OPTIONS, "--workers", "2"]
    choice = random.Random()
    began = time.monotonic()
    subprocess.run([*command[:4], str(tmp_path / "timed"), *command[5:]], check=True, capture_output=True)
    whole = time.monotonic() - began
    for _ in range(4):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(choice.uniform(0.3, 1) * whole)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(reference)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    subprocess.run(command, check=True, capture_output=True)  # finished: nothing is written again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_shard_that_was_damaged_meanwhile_is_made_again(reference: Path, images: Images, tmp_path: Path) -> None:
    source = releases.make("tar of tars", images, tmp_path)
    for task in (0, 1):
        make(source, tmp_path / "out", "--workers", 1, "--task", task, "--tasks", 2)
    tar = next((tmp_path / "out").glob("train-*.tar"))
    content = bytearray(tar.read_bytes())
    content[-3000] ^= 1
    tar.write_bytes(content)
    for task in (0, 1):
        make(source, tmp_path / "out", "--workers", 1, "--task", task, "--tasks", 2)
    make(source, tmp_path / "out", "--workers", 1, "--tasks", 2, "--finalize")
    assert contents(tmp_path / "out") == contents(reference)


def test_a_finished_data_set_is_not_mixed_with_other_options(
    reference: Path, images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = releases.make("tar of tars", images, tmp_path)
    line = refused(capsys, shard.main, source, reference, *OPTIONS, "--min-side", 30)
    assert "min_side" in line
    assert str(reference) in line


@pytest.fixture
def places(images: Images, tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "nothing.tar", "w"):
        pass
    (tmp_path / "text.tar").write_bytes(b"this is no tar at all" * 100)
    (tmp_path / "no_images" / "n01440764").mkdir(parents=True)
    (tmp_path / "no_images" / "n01440764" / "readme.txt").write_text("no image")
    (tmp_path / "bare").mkdir()
    (tmp_path / "file").write_text("a file")
    names = ("empty.tar", "nothing.tar", "text.tar", "no_images", "bare", "file")
    return {name.split(".", maxsplit=1)[0]: tmp_path / name for name in names} | {
        "tar": releases.make("tar of tars", images, tmp_path),
        "none": tmp_path / "none",
        "out": tmp_path / "out",
    }


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["{none}", "{out}"], ["INPUT", "{none}", "does not exist", "give"]),
        (["{empty}", "{out}"], ["INPUT", "{empty}", "empty", "download it again"]),
        (["{nothing}", "{out}"], ["INPUT", "{nothing}"]),
        (["{text}", "{out}"], ["INPUT", "{text}", "is not a tar"]),
        (["{no_images}", "{out}"], ["{no_images}", "image"]),
        (["{bare}", "{out}"], ["{bare}"]),
        (["{tar}", "{file}"], ["OUTPUT", "{file}", "is a file"]),
        (["{tar}", "{out}", "--val-fraction", "1.5"], ["--val-fraction 1.5", "such as 0.1"]),
        (["{tar}", "{out}", "--workers", "0"], ["--workers 0"]),
        (["{tar}", "{out}", "--tasks", "3"], ["--tasks 3 needs --task"]),
        (["{tar}", "{out}", "--task", "3", "--tasks", "3"], ["--task 3 of --tasks 3"]),
        (["{tar}", "{out}", "--tasks", "2", "--finalize"], ["{out}"]),
        (["{tar}", "{out}", "--resize", "256"], ["--resize '256'", "short=256"]),
        (["{tar}", "{out}", "--classes", "{none}"], ["--classes", "{none}"]),
        (["{tar}", "{out}", "--classes", "imagenet1k", "--exclude", "{none}"], ["--exclude", "{none}"]),
        (["{tar}", "{out}", "--verify", "hope"], ["verify", "hope"]),
        (["{tar}"], ["OUTPUT"]),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], places: dict[str, Path], arguments: list[str], parts: list[str]
) -> None:
    line = refused(capsys, shard.main, *[argument.format(**places) for argument in arguments])
    for part in parts:
        assert part.format(**places) in line


def test_a_summary_for_machines(images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(releases.make("folder of tars", images, tmp_path), tmp_path / "out", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"] == dataset_format.read_info(tmp_path / "out").samples
    assert facts["classes"] == 4


def test_restart_markers_are_asked_for_and_change_no_pixel(reference: Path, images: Images, tmp_path: Path) -> None:
    source = releases.make("tar of tars", images, tmp_path)
    out = make(source, tmp_path / "out", "--restart", "--workers", 1)
    assert contents(make(source, tmp_path / "again", "--restart", "--workers", 2, "--name", "mini")) == contents(out)

    def pictures(folder: Path) -> dict[str, tuple[str, int, bytes]]:
        found = {}
        for row in dataset_format.read_index(folder).to_pylist():
            with (folder / f"{row['split']}-{row['shard']:05d}.tar").open("rb") as file:
                file.seek(row["offset"])
                found[row["key"]] = (row["recoded"], row["orientation"], file.read(row["size"]))
        return found

    before, after = pictures(reference), pictures(out)
    assert before.keys() == after.keys()
    for key, (recoded, orientation, data) in after.items():
        assert recoded == "+".join(filter(None, (before[key][0], "restart")))
        assert orientation == before[key][1]
        assert (simplejpeg.decode_jpeg(data) == simplejpeg.decode_jpeg(before[key][2])).all()
        assert b"\xff\xdd\x00\x04" in data


def test_resizing_is_asked_for_and_recorded(images: Images, tmp_path: Path) -> None:
    from PIL import Image

    out = make(releases.make("tar of tars", images, tmp_path), tmp_path / "out", "--resize", "short=32")
    for row in dataset_format.read_index(out).to_pylist():
        with (out / f"{row['split']}-{row['shard']:05d}.tar").open("rb") as file:
            file.seek(row["offset"])
            with Image.open(io.BytesIO(file.read(row["size"]))) as image:
                assert image.size == (row["width"], row["height"])
        assert min(row["width"], row["height"]) <= 32
        assert (row["recoded"] == "resized") == (min(row["width"], row["height"]) == 32 and row["recoded"] != "")
