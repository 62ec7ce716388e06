"""jobs.suite on miniatures of every set, against a direct computation image by image."""

import io
import json
import re
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.test_sets.archive import entries
from data_prep.test_sets.catalogue import NAMES, named
from data_prep.test_sets.find import find
from data_prep.test_sets.read_set import read
from jobs import suite
from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.core.progress import Bar
from pipeline.inference.image_files import Picture, prepared
from pipeline.interop import export
from pipeline.interop.trained_model import Description, Named, Trained
from pipeline.model.preprocess import normalise
from pipeline.model.vit import VisionTransformer
from pipeline.runs import suite_results
from pipeline.runs.folder import EVALUATION_LINES, EVALUATIONS
from pipeline.runs.records import Attempt, Record, read_lines, write_record
from pipeline.suite import run_suite
from pipeline.suite.set_accuracy import Counts
from pipeline.suite.subsets import ALEXNET, corruption_scores, grouped, hits, members
from tests.helpers.launch import ACCELERATE, last_json, run
from tests.helpers.models import random_model
from tests.helpers.quick_python import executable
from tests.helpers.runs import make_run
from tests.helpers.terminal import Terminal
from tests.suite.miniatures import VAL, WNIDS, A, Expected, make

CONFIG = ModelConfig(variant="tiny", image_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets") / "downloads"


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, list[Expected]]:
    return make(folder)


@pytest.fixture(scope="module")
def root(folder: Path, made: object) -> Path:  # noqa: ARG001 - it fills the folder
    return folder


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    return random_model(CONFIG, len(WNIDS)).eval()


@pytest.fixture(scope="module")
def model(network: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    classes = tuple(Named(wnid, wnid) for wnid in WNIDS)
    export.write(folder, "safetensors", Trained(Description(CONFIG, classes), network.state_dict()))
    return folder


@torch.inference_mode()
def ranked(network: VisionTransformer, data: bytes, classes: set[int]) -> list[int]:
    """The model's classes among ``classes``, the likeliest first, for one image."""
    pixels = torch.from_numpy(prepared(data, CONFIG.image_size, "square"))[None]  # type: ignore[arg-type]
    logits = network(normalise(pixels, torch.float32))[0].tolist()
    return sorted(classes, key=lambda index: (-logits[index], index))


def share(network: VisionTransformer, images: list[Expected], depth: int) -> float:
    """Top-``depth`` accuracy, image by image, for sets in which each class is one of the model's."""
    present = {image.right[0] for image in images}
    return sum(image.right[0] in ranked(network, image.data, present)[:depth] for image in images) / len(images)


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0
) -> dict:
    monkeypatch.setattr("sys.argv", ["suite", *map(str, arguments)])
    assert suite.main() == code
    return last_json(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIT_CACHE", str(tmp_path / "cache"))


def test_every_set_is_what_a_direct_computation_gives(
    root: Path, made: dict[str, list[Expected]], network: VisionTransformer, model: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    found = call(
        monkeypatch, capsys, model, "--data-root", root, "--partial", "--workers", 0, "--out", tmp_path / "out"
    )
    assert list(found)[1:] == list(NAMES)
    for name in ("val", "v2", "v2-threshold", "v2-top", "a", "r", "sketch"):
        assert found[name]["samples"] == len(made[name])
        assert found[name]["top1"] == share(network, made[name], 1), name
        assert found[name]["top5"] == share(network, made[name], 5), name

    present = {image.right[0] for image in made["val"]}
    labelled = [image for image in made["real"] if image.right]
    right = [ranked(network, image.data, set(range(1000)))[0] in image.right for image in labelled]
    assert found["real"] == {"samples": len(labelled), "top1": sum(right) / len(right)}
    assert present

    overlapping = {index for image in made["objectnet"] for index in image.right}
    right = [ranked(network, image.data, overlapping)[0] in image.right for image in made["objectnet"]]
    assert found["objectnet"]["samples"] == len(made["objectnet"]) == 6
    assert found["objectnet"]["top1"] == sum(right) / len(right)

    present = {image.right[0] for image in made["c"]}
    errors: dict[str, list[bool]] = {}
    for image in made["c"]:
        wrong = ranked(network, image.data, present)[0] != image.right[0]
        errors.setdefault(image.part.split("/")[0], []).append(wrong)
    assert found["c"]["samples"] == 75
    assert found["c"]["top1"] == pytest.approx(1 - np.mean(list(errors.values())))
    mce = np.mean([np.mean(errors[name]) / ALEXNET[name] for name in ALEXNET])
    assert found["c"]["mce"] == pytest.approx(mce)


def test_two_processes_count_the_same(root: Path, model: Path, tmp_path: Path) -> None:
    arguments = (
        "-m",
        "jobs.suite",
        model,
        "--data-root",
        root,
        "--partial",
        "--only",
        "val,real,a,sketch,objectnet",
        "--batch",
        2,
    )
    alone, both = (
        last_json(run(*before, *arguments, "--workers", workers, log=tmp_path / f"{workers}.log"))
        for before, workers in (((), 0), (ACCELERATE, 1))
    )
    assert alone == both


def test_an_interrupted_suite_continues_set_by_set(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    make_run(run_dir, CONFIG, wnids=WNIDS)
    arguments = (run_dir, "--data-root", root, "--partial", "--workers", 0)
    first = call(monkeypatch, capsys, *arguments, "--only", "a,r")
    kept = run_dir / EVALUATIONS / "suite-a" / "result.json"
    times = kept.stat().st_mtime_ns
    both = call(monkeypatch, capsys, *arguments, "--only", "a,r,sketch")
    assert kept.stat().st_mtime_ns == times
    assert {name: both[name] for name in ("a", "r")} == {name: first[name] for name in ("a", "r")}
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"key": "of another model"}))
    assert call(monkeypatch, capsys, *arguments, "--only", "a")["a"] == first["a"]
    assert json.loads(kept.read_text()) == content


def test_results_are_logged_with_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    make_run(run_dir, CONFIG, wnids=WNIDS)
    sent: list[Path] = []
    monkeypatch.setattr(suite, "send", sent.append)
    write_record(run_dir, Record("key", "vit", "run", {}, {}, attempts=[Attempt(1, 0, 0.0, 1, {}, "FINISHED", 1.0)]))
    found = call(
        monkeypatch, capsys, run_dir, "--data-root", root, "--partial", "--workers", 0, "--only", "a,v2", "--log"
    )
    lines, _ = read_lines(run_dir / EVALUATION_LINES)
    logged = {name: value for line in lines for name, value in line.metrics.items()}
    assert logged["suite/a-partial/top1"] == found["a"]["top1"]
    assert logged["suite/v2-partial/top5"] == found["v2"]["top5"]
    assert {line.step for line in lines} == {7}
    assert sent == [run_dir]


def test_a_result_is_written_and_logged_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    make_run(run_dir, CONFIG, wnids=WNIDS, average=True)
    write_record(run_dir, Record("key", "vit", "run", {}, {}, attempts=[Attempt(1, 0, 0.0, 1, {}, "FINISHED", 1.0)]))
    monkeypatch.setattr(suite, "send", lambda _: None)
    written: list[Path] = []
    write = suite_results.write

    def counted(folder: Path, result: suite_results.Result) -> None:
        written.append(folder)
        write(folder, result)

    monkeypatch.setattr(suite_results, "write", counted)
    arguments = (run_dir, "--data-root", root, "--partial", "--workers", 0, "--only", "a")
    found = call(monkeypatch, capsys, *arguments)
    assert written == [run_dir / EVALUATIONS]
    assert read_lines(run_dir / EVALUATION_LINES)[0] == []
    for _ in range(2):  # the kept result is logged, once
        assert call(monkeypatch, capsys, *arguments, "--log") == found
        assert written == [run_dir / EVALUATIONS]
        assert len(read_lines(run_dir / EVALUATION_LINES)[0]) == 1
    # with a folder of its own, and of other weights: beside the former result, not in its place
    call(monkeypatch, capsys, *arguments, "--log", "--out", tmp_path / "out", "--average")
    assert written[1:] == [tmp_path / "out", run_dir / EVALUATIONS]
    kept = suite_results.read_all(run_dir / EVALUATIONS)
    assert [(result.name, result.average) for result in kept] == [("a", False), ("a", True)]
    lines, _ = read_lines(run_dir / EVALUATION_LINES)
    assert [next(iter(line.metrics)) for line in lines] == [
        "suite/a-partial/samples",
        "suite/a-average-partial/samples",
    ]


def test_val_and_real_share_a_pass(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    passes: list[int] = []
    accuracy = run_suite.accuracy

    def counted(classifier: object, pictures: list[Picture], *rest: object, **more: object) -> Counts:
        passes.append(len(pictures))
        return accuracy(classifier, pictures, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(run_suite, "accuracy", counted)
    arguments = (model, "--data-root", root, "--partial", "--workers", 0)
    both = call(monkeypatch, capsys, *arguments, "--only", "real,val", "--out", tmp_path / "out")
    assert list(both)[1:] == ["val", "real"]
    assert passes == [len(VAL)]
    alone = [call(monkeypatch, capsys, *arguments, "--only", name) for name in ("val", "real")]
    assert [list(one)[1:] for one in alone] == [["val"], ["real"]]
    assert both == alone[0] | alone[1]
    # one that was kept stays as it is; other labels of the same images are another result
    kept = tmp_path / "out" / "suite-val" / "result.json"
    (tmp_path / "out" / "suite-real" / "result.json").unlink()
    times = kept.stat().st_mtime_ns
    assert call(monkeypatch, capsys, *arguments, "--only", "real,val", "--out", tmp_path / "out") == both
    assert (len(passes), kept.stat().st_mtime_ns) == (4, times)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        (other / name).symlink_to(root / name)
    for labels in ([[3], [41], [], []], [[1], [2], [], []]):
        (other / "real.json").write_text(json.dumps(labels))
        call(
            monkeypatch, capsys, model, "--data-root", other, *arguments[3:], "--only", "real", "--out", tmp_path / "2"
        )
    assert len(passes) == 6


def test_a_partial_or_damaged_download_is_named(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ["suite", str(model), "--data-root", str(root), "--only", "a", "--workers", "0"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(UserError, match=r"imagenet-a.tar' has 6 images, but ImageNet-A has 7,500: download it again"):
        suite.main()

    other = tmp_path / "damaged"
    shutil.copytree(root / "imagenet-r", other / "imagenet-r")
    (other / "imagenet-r" / WNIDS[2] / "art_1.jpg").write_bytes(b"\xff\xd8\xff no image")
    monkeypatch.setattr("sys.argv", [*arguments[:3], str(other), "--only", "r", "--workers", "0", "--partial"])
    with pytest.raises(UserError, match=r"1 images of ImageNet-R can't be read, .*art_1\.jpg"):
        suite.main()

    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "imagenet-a.tar").write_bytes((root / "imagenet-a.tar").read_bytes()[:3000])
    monkeypatch.setattr("sys.argv", [*arguments[:3], str(cut), "--only", "a", "--partial"])
    with pytest.raises(UserError, match=r"imagenet-a\.tar' can't be read as a tar .*: download it again"):
        suite.main()


@pytest.mark.parametrize(
    ("name", "whole"),
    [("val", "50,000"), ("real", "50,000"), ("v2", "10,000"), ("v2-threshold", "10,000"), ("v2-top", "10,000"),
     ("a", "7,500"), ("r", "30,000"), ("sketch", "50,889"), ("objectnet", "50,000"), ("c", "3,750,000")],
)  # fmt: skip
def test_another_number_of_images_than_the_release_has_is_refused(
    name: str, whole: str, root: Path, made: dict[str, list[Expected]], tmp_path: Path
) -> None:
    images = 8 if name == "objectnet" else len(made[name])  # those of other classes than ImageNet's, too
    with pytest.raises(UserError, match=f"has {images} images, but {named(name).title} has {whole}: download it again"):
        read(named(name), find(root)[name], tmp_path)


def test_imagenet_c_has_one_progress_for_all_its_parts(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bars: list[Bar] = []

    class Recorded(Bar):
        def __init__(self, what: str, total: int, unit: str, *, start: int = 0, shown: bool = True) -> None:
            super().__init__(what, total, unit, start=start, shown=shown)
            self.facts, self.calls = (what, total, start), list[tuple[int, str]]()
            bars.append(self)

        def update(self, done: int, note: str = "") -> None:
            super().update(done, note)
            self.calls.append((self._done, note))

    monkeypatch.setattr(run_suite, "Bar", Recorded)
    arguments = (model, "--data-root", root, "--partial", "--workers", 0, "--only", "c", "--out", tmp_path / "out")
    whole = call(monkeypatch, capsys, *arguments)
    assert [bar.facts for bar in bars] == [("ImageNet-C", 75, 0)]
    assert bars[0].calls[-1] == (75, "zoom_blur/5")
    assert [done for done, _ in bars[0].calls][::2] == list(range(1, 76)), "each part advances, then is done"
    for name in ("suite-c", "suite-c-fog-3"):
        shutil.rmtree(tmp_path / "out" / name)
    assert call(monkeypatch, capsys, *arguments) == whole
    assert bars[1].facts == ("ImageNet-C", 75, 74)
    assert bars[1].calls == [(75, "fog/3")] * 2


def test_refused_sets_leave_no_empty_table(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["suite", str(model), "--data-root", str(root), "--only", "a,r", "--workers", "0"])
    assert suite.main() == 1
    assert capsys.readouterr().out == json.dumps({"model": str(model)}) + "\n"


def test_a_killed_suite_loses_one_set_and_shows_its_progress(root: Path, tmp_path: Path) -> None:
    """As a user on a terminal: two starts of the command, of which the first is killed in its second set."""
    folder, run_dir = tmp_path / "sets", tmp_path / "run"
    (folder / "imagenet-r" / WNIDS[1]).mkdir(parents=True)
    (folder / "imagenet-a.tar").symlink_to(root / "imagenet-a.tar")
    for number in range(600):
        (folder / "imagenet-r" / WNIDS[1] / f"{number}.jpg").hardlink_to(root / "imagenet-r" / WNIDS[1] / "art_0.jpg")
    make_run(run_dir, CONFIG, wnids=WNIDS)
    command = ("-m", "jobs.suite", run_dir, "--data-root", folder, "--only", "a,r", "--partial", "--batch", "1")
    command += ("--workers", "0")
    progress = re.compile(r"ImageNet-R .*\d/600 images, [\d.,]+ images/s, ETA \d\d:\d\d")
    with Terminal((sys.executable, *command)) as terminal:  # a whole process, to be killed
        while not progress.search(terminal.text):
            terminal.read_more()
        terminal.process.kill()
        assert terminal.wait() == 128 + signal.SIGKILL
    kept = run_dir / EVALUATIONS / "suite-a" / "result.json"
    written = kept.stat().st_mtime_ns
    assert sorted(path.name for path in kept.parent.parent.iterdir()) == ["suite-a"]
    with Terminal((executable(), *command)) as terminal:
        assert terminal.wait() == 0
        assert "600/600 images" in terminal.text
        assert "6/6 images" not in terminal.text, "ImageNet-A is not evaluated again"
        assert "ImageNet-A (partial)" in terminal.text
    assert kept.stat().st_mtime_ns == written
    assert suite_results.read_all(run_dir / EVALUATIONS)[1].scores["samples"] == 600


def test_missing_sets_are_listed_with_their_source(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.argv", ["suite", str(model), "--data-root", str(tmp_path / "empty"), "--only", "sketch,r"])
    with pytest.raises(UserError, match=r"holds none of r, sketch: .*imagenet-r\.tar"):
        suite.main()
    monkeypatch.setattr("sys.argv", ["suite", str(model), "--data-root", str(root), "--only", "imagenet-x"])
    with pytest.raises(UserError, match=r"--only 'imagenet-x' is unknown: there are val, real, v2"):
        suite.main()


def test_a_model_without_the_set_s_classes_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", CONFIG)
    monkeypatch.setattr(
        "sys.argv", ["suite", str(tmp_path / "run"), "--data-root", str(root), "--only", "a", "--partial"]
    )
    with pytest.raises(UserError, match=f"MODEL has no class {WNIDS[A[0]]}, which ImageNet-A requires"):
        suite.main()


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "zip"])
def test_every_form_of_a_download_holds_the_same(form: str, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imagenet-r"
    shutil.copytree(root / "imagenet-r", folder)
    download = folder
    if form != "folder":
        kind = {"tar": "tar", "tar.gz": "gztar", "zip": "zip"}[form]
        download = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path, "imagenet-r"))
    found = {Path(entry.name).name: entry.read() for entry in entries(download, tmp_path / "cache")}
    assert found == {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_of_ours_is_taken_too(root: Path, made: dict[str, list[Expected]], tmp_path: Path) -> None:
    run("-m", "data_prep.shard", root / "imagenet-a.tar", tmp_path / "imagenet-a", "--split", "test",
        "--classes", "imagenet1k", "--workers", 1, log=tmp_path / "log")  # fmt: skip
    (download,) = find(tmp_path)["a"]
    images = read(named("a"), [download], tmp_path / "cache", partial=True)
    assert images.classes == tuple((WNIDS[label],) for label in sorted(A))
    sizes = sorted(len(image.entry.read()) for image in images.images)
    assert sizes == sorted(len(image.data) for image in made["a"])


def test_objectnet_loses_its_border() -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    red[2:-2, 2:-2] = (0, 0, 255)
    file = io.BytesIO()
    Image.fromarray(red).save(file, "png")
    assert (prepared(file.getvalue(), 16, "square", border=2) == (0, 0, 255)).all()
    assert not (prepared(file.getvalue(), 16, "square") == (0, 0, 255)).all()


def test_a_zip_with_a_password_is_named(root: Path, tmp_path: Path) -> None:
    """The flag of the first member's two headers is set by hand: zipfile writes no passwords."""
    data = bytearray((root / "ImageNet-Sketch.zip").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    (tmp_path / "objectnet-1.0.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"objectnet-1\.0\.zip' has a password: unpack it"):
        list(entries(tmp_path / "objectnet-1.0.zip", tmp_path))


def test_a_set_s_classes_are_the_only_ones_that_count() -> None:
    logits_BC = torch.tensor([[9.0, 1.0, 2.0, 3.0, 0.0], [0.0, 5.0, 2.0, 3.0, 4.0], [0.0, float("nan"), 1.0, 0.0, 0.0]])
    group_C = members([("b", "e"), ("c",)], ["a", "b", "c", "d", "e"], "a set")
    assert group_C.tolist() == [-1, 0, 1, -1, 0]
    assert grouped(logits_BC[:2], group_C).tolist() == [[1.0, 2.0], [5.0, 2.0]]
    assert hits(logits_BC[:2], group_C, torch.tensor([1, 0])).tolist() == [2, 2, 2]
    assert hits(logits_BC[:2], group_C, torch.tensor([0, 1])).tolist() == [2, 0, 2]
    assert hits(logits_BC[2:], group_C, torch.tensor([0])).tolist() == [1, 0, 0]


def test_mce_of_alexnet_itself_is_one() -> None:
    scores = corruption_scores({name: dict.fromkeys(range(1, 6), error) for name, error in ALEXNET.items()})
    assert scores["mce"] == pytest.approx(1)
    assert "mce" not in corruption_scores({"fog": {1: 0.5}})


def test_gzipped_tars_are_expanded_once(root: Path, tmp_path: Path) -> None:
    download = root / "imagenetv2-matched-frequency.tar.gz"
    first = [entry.file for entry in entries(download, tmp_path)]
    written = first[0].stat().st_mtime_ns
    assert [entry.file for entry in entries(download, tmp_path)] == first
    assert first[0].stat().st_mtime_ns == written
    assert tarfile.is_tarfile(first[0])
    (tmp_path / "bad.tar.gz").write_bytes(download.read_bytes()[:500])
    with pytest.raises(UserError, match=r"bad\.tar\.gz' can't be unpacked"):
        list(entries(tmp_path / "bad.tar.gz", tmp_path))
    assert not list(tmp_path.glob(".*"))
