"""jobs.predict: predictions of every kind of model and image, output files, the roll-out, and refused inputs."""

import csv
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from PIL import Image

from jobs import export, predict
from pipeline.config.schema import ModelConfig
from pipeline.core import log
from pipeline.core.errors import UserError
from pipeline.imaging import jpeg as jpegs
from pipeline.inference import image_files, predictions
from pipeline.inference.attention_rollout import attentions, rollout
from pipeline.inference.predictions import Answer, Files
from pipeline.interop.export import FORMATS
from pipeline.interop.trained_model import Named
from pipeline.loader.transforms import eval_image
from pipeline.model.preprocess import normalise
from pipeline.model.vit import ARCHITECTURES, Attention, VisionTransformer
from tests.helpers.launch import ACCELERATE, last_json, run
from tests.helpers.models import random_model
from tests.helpers.quick_python import executable
from tests.helpers.runs import CLASSES, make_run


@pytest.fixture
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", replace(ARCHITECTURES["tiny"], depth=2))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven smooth JPEGs of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(1)
    for number in range(7):
        coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
        picture = cv2.resize(coarse, (60 + 5 * number, 90 - 3 * number), interpolation=cv2.INTER_CUBIC)
        (folder / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(picture, 95))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments)])
    log.set_up()  # as cli.run does: warnings go to stderr, whichever test ran before
    assert predict.main() == 0


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@torch.inference_mode()
def expected(model: VisionTransformer, jpeg: bytes, resize: str, loss: str) -> list[tuple[str, float]]:
    """(wnid, probability) of the five likeliest classes, one image at a time."""
    image_HWC = eval_image(jpeg, model.config.image_size, resize)  # type: ignore[arg-type]
    logits_C = model(normalise(torch.from_numpy(image_HWC)[None], torch.float32))[0]
    scores_C = logits_C.sigmoid() if loss == "sigmoid" else logits_C.exp() / logits_C.exp().sum()
    order = sorted(range(CLASSES), key=lambda index: -float(scores_C[index]))[:5]
    return [(f"n{index}", float(scores_C[index])) for index in order]


@pytest.mark.usefixtures("_shallow")
@pytest.mark.parametrize(("resize", "loss"), [("square", "softmax"), ("central", "sigmoid")])
def test_a_run_and_each_of_its_exports_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path, resize: str, loss: str
) -> None:
    model = make_run(tmp_path / "run", ModelConfig("tiny", 48), resize=resize, loss=loss)
    forms = FORMATS if resize == "central" else ("timm",)
    for form in forms:
        monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "run"), str(tmp_path / form), "--format", form])
        export.main()
    truth = {file.name: expected(model, file.read_bytes(), resize, loss) for file in photos.iterdir()}
    files = {"npz": "model.npz", "onnx": "model.onnx", "torch": "model.pt2"}
    sources = [tmp_path / "run", *(tmp_path / form for form in forms)]
    sources += [tmp_path / form / name for form, name in files.items() if form in forms]
    for source in sources:
        out = tmp_path / "out.csv"
        trust = ("--trust-code",) if "torch" in str(source.relative_to(tmp_path)) else ()
        call(monkeypatch, source, photos, "--csv", out, "--batch", 3, "--workers", 0, *trust)
        found = rows_of(out)
        assert [Path(row["image"]).name for row in found] == sorted(truth)
        for row in found:
            for place, (wnid, probability) in enumerate(truth[Path(row["image"]).name], start=1):
                assert row[f"wnid_{place}"] == wnid, source
                assert row[f"name_{place}"] == f"name {wnid[1:]}"
                assert float(row[f"probability_{place}"]) == pytest.approx(probability, abs=2e-6)


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.usefixtures("_shallow")
def test_pictures_of_every_kind_in_order_and_bad_ones_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    good = (photos / "0.jpg").read_bytes()
    pixels = np.asarray(Image.open(photos / "1.jpg"))
    folder = tmp_path / "mixed"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "round").symlink_to(folder)
    (folder / "a.jpg").write_bytes(good)
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "text.png").write_text("this is text")
    (folder / "notes.txt").write_text("not a picture, and not named like one")
    (folder / "b" / "phone.HEIC").write_bytes(b"not readable")
    (folder / "b" / "LICENSE").write_text("no ending")
    (folder / "empty.jpeg").write_bytes(b"")
    (folder / ".hidden.jpg").write_bytes(good)
    Image.fromarray(pixels).convert("CMYK").save(folder / "b" / "cmyk.jpg")
    Image.fromarray(pixels).save(folder / "b" / "lossless.png")
    Image.fromarray(pixels).convert("RGBA").save(folder / "b" / "clear.webp", lossless=True)
    Image.fromarray(pixels).convert("L").save(folder / "b" / "grey.gif")
    tar_of(folder / "c.tar", {"x/0.jpg": good, "x/0.cls": b"3", "x/1.jpg": good[:300]})
    (folder / "junk.tar").write_bytes(b"x" * 2000)
    out = tmp_path / "out.parquet"
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "README").write_text("no ending")
    (tmp_path / "plain" / "2.jpg").write_bytes((photos / "2.jpg").read_bytes())
    call(monkeypatch, tmp_path / "run", folder, tmp_path / "plain", "--parquet", out, "--csv", tmp_path / "out.csv")
    table = pq.read_table(out).to_pylist()
    names = [str(Path(row["image"]).relative_to(tmp_path)) for row in table[:-1]]
    inside = ["a.jpg", "c.tar/x/0.jpg", "c.tar/x/1.jpg", "cut.jpg", "empty.jpeg", "junk.tar", "text.png"]
    assert names == [
        f"mixed/{name}" for name in [*inside, "b/clear.webp", "b/cmyk.jpg", "b/grey.gif", "b/lossless.png"]
    ]
    by_name = {Path(row["image"]).name: row for row in table}
    bad = {name for name, row in by_name.items() if row["error"]}
    assert bad == {"1.jpg", "cut.jpg", "empty.jpeg", "junk.tar", "text.png"}
    assert "can't be read as a tar" in by_name["junk.tar"]["error"]
    assert "cut short" in by_name["cut.jpg"]["error"]
    assert "not recognise" in by_name["text.png"]["error"]
    for row in table:
        assert (row["index_1"] is None) == bool(row["error"])
    same = ("index_1", "probability_1")
    assert [by_name["0.jpg"][key] for key in same] == [by_name["a.jpg"][key] for key in same]
    assert [by_name["clear.webp"][key] for key in same] == [by_name["lossless.png"][key] for key in same]
    assert len(rows_of(tmp_path / "out.csv")) == len(table)
    captured = capsys.readouterr()
    assert captured.err.count("is skipped") == 5
    assert f"{folder}: other files skipped: 3 (1 .heic, 1 .txt)\n" in captured.err
    assert f"{tmp_path / 'plain'}: other files skipped: 1\n" in captured.err
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["images"], report["bad"]) == (12, 5)
    assert report["images_per_second"] > 0


def test_predict_is_as_right_as_evaluate_on_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Path
) -> None:
    """The same images, prepared the same way: the share of right answers is evaluation's, to the last image."""
    run_dir = tmp_path / "run"
    make_run(run_dir, ModelConfig("tiny", 32))
    wnids = [f"digit{index}" for index in range(CLASSES)]
    (run_dir / "classes.json").write_text(json.dumps([{"wnid": wnid, "name": wnid} for wnid in wnids]))
    shards = sorted(digits.glob("val-*.tar"))
    call(monkeypatch, run_dir, *shards, "--csv", tmp_path / "out.csv", "--batch", 64)
    found = rows_of(tmp_path / "out.csv")
    right = [[row[f"wnid_{place}"] for place in range(1, 6)] for row in found]
    truth = [Path(row["image"]).name.split("_")[0] for row in found]
    meta = next(run_dir.rglob("meta.json"))
    digest = json.loads((digits / "dataset.json").read_text())["classes_digest"]
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"classes_digest": digest}))
    job = ("-m", "jobs.evaluate", run_dir, "--data", digits)
    theirs = last_json(run(*job, log=tmp_path / "log", python=str(executable())))
    assert theirs["samples"] == len(found)
    assert theirs["top1"] == pytest.approx(np.mean([own[0] == label for own, label in zip(right, truth, strict=True)]))
    assert theirs["top5"] == pytest.approx(np.mean([label in own for own, label in zip(right, truth, strict=True)]))


def test_two_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    (tmp_path / "bad.jpg").write_bytes(b"x")
    arguments = (tmp_path / "run", photos, tmp_path / "bad.jpg", "--batch", 2, "--workers", 1)
    call(monkeypatch, *arguments, "--csv", tmp_path / "one.csv")
    job = (*ACCELERATE, "-m", "jobs.predict", *arguments, "--csv", tmp_path / "two.csv")
    run(*job, log=tmp_path / "log", python=str(executable()))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert len(rows_of(tmp_path / "one.csv")) == 8


@pytest.mark.parametrize(("workers", "world_size"), [(0, 1), (1, 3), (2, 1), (2, 5)])
def test_every_batch_has_its_own_pictures(tmp_path: Path, photos: Path, workers: int, world_size: int) -> None:
    """With more batches than slots, and ranks as many as slots: a batch must not lie where another still is."""
    (tmp_path / "bad.jpg").write_bytes(b"x")
    good = [image_files.Picture(path.name, path) for path in sorted(photos.iterdir())]
    listed = [*good, image_files.Picture("bad.jpg", tmp_path / "bad.jpg")] * 5
    found: dict[int, torch.Tensor] = {}
    bad: list[int] = []
    for rank in range(world_size):
        own = list(
            image_files.batches(
                listed, batch=3, size=32, resize="square", workers=workers, rank=rank, world_size=world_size
            )
        )
        for number, batch in enumerate(own):
            places = range((number * world_size + rank) * 3, min((number * world_size + rank) * 3 + 3, len(listed)))
            assert sorted([*batch.kept, *(place for place, _ in batch.bad)]) == list(places)
            assert all("not recognise" in reason for _, reason in batch.bad)
            bad += [place for place, _ in batch.bad]
            found |= dict(zip(batch.kept, batch.images_BHWC, strict=True))
    assert sorted(bad) == list(range(7, 40, 8))
    assert len(found) == 35
    for place, image_HWC in found.items():
        want = image_files.prepared(image_files.read(listed[place]), 32, "square")
        assert np.array_equal(image_HWC.numpy(), want), place


def reference_rollout(model: VisionTransformer, x_BCHW: torch.Tensor) -> np.ndarray:
    """Abnar & Zuidema's equations, a head, a token and a layer at a time, on attention from the definition."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
        for block in model.blocks
    ]
    with torch.no_grad():
        model(x_BCHW)
    for hook in hooks:
        hook.remove()
    joint = None
    for block, x_BLD in zip(model.blocks, seen, strict=True):
        attention: Attention = block.attn  # type: ignore[assignment]
        width, heads = x_BLD.shape[-1], attention.heads
        q, k = (
            (x_BLD[0] @ attention.qkv.weight[part * width : (part + 1) * width].T).detach().double().numpy()
            + attention.qkv.bias[part * width : (part + 1) * width].detach().double().numpy()
            for part in range(2)
        )
        mean = np.zeros((len(q), len(q)))
        for head in range(heads):
            own = slice(head * width // heads, (head + 1) * width // heads)
            scores = np.exp(q[:, own] @ k[:, own].T / (width // heads) ** 0.5)
            mean += scores / scores.sum(1, keepdims=True) / heads
        layer = (mean + np.eye(len(q))) / 2
        joint = layer if joint is None else layer @ joint
    assert joint is not None
    patches = joint[0, 1:]
    side = round(len(patches) ** 0.5)
    return np.asarray((patches / patches.sum()).reshape(side, side))


def test_the_rollout_is_the_papers() -> None:
    model = random_model(ModelConfig("tiny", 40), CLASSES).eval()
    x_BCHW = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(4))
    found = attentions(model, x_BCHW)
    assert [tuple(a.shape[-2:]) for a in found] == [(26, 26)] * 5 + [(1, 26)]
    for a_BNQL in found:
        torch.testing.assert_close(a_BNQL.sum(-1), torch.ones(a_BNQL.shape[:-1]))
    maps_BGG = rollout(found).numpy()
    for index in range(2):
        np.testing.assert_allclose(maps_BGG[index], reference_rollout(model, x_BCHW[index : index + 1]), rtol=1e-4)
    assert maps_BGG[0].std() > 1e-4, "every patch counts the same: this model can't tell a right map from a wrong one"


@pytest.mark.usefixtures("_shallow")
def test_rollout_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    classes = [{"wnid": f"n{index}", "name": "$\\frac_\u732b"} for index in range(CLASSES)]
    (tmp_path / "run" / "classes.json").write_text(json.dumps(classes))
    (tmp_path / "bad.jpg").write_bytes(b"x")
    odd = [tmp_path / f"{'n' * 250}.jpg", tmp_path / os.fsdecode(b"$x_$\xff.jpg")]
    for path in odd:
        path.write_bytes((photos / "3.jpg").read_bytes())
    images = (photos / "3.jpg", tmp_path / "bad.jpg", photos / "4.jpg", *odd)
    call(monkeypatch, tmp_path / "run", *images, "--rollout", tmp_path / "looks", "--csv", tmp_path / "out.csv")
    names = ["000000-3.png", "000002-4.png", f"000003-{'n' * 200}.png", "000004-$x_$%FF.png"]
    assert sorted(path.name for path in (tmp_path / "looks").iterdir()) == names
    found = rows_of(tmp_path / "out.csv")
    assert found[-1]["image"] == str(tmp_path / "$x_$%FF.jpg")
    assert found[-1]["probability_1"] == found[0]["probability_1"]
    shown = np.asarray(Image.open(tmp_path / "looks" / "000000-3.png").convert("RGB"))
    assert shown.shape[0] > 300
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 500, "the picture is all but empty"


def graph_without_names(folder: Path, photos: Path) -> tuple[object, ...]:
    (folder / "alone").mkdir()
    (folder / "alone" / "model.onnx").write_bytes(b"onnx")
    return folder / "alone" / "model.onnx", photos


def compressed(folder: Path, photos: Path) -> tuple[object, ...]:
    (folder / "photos.tar.gz").write_bytes(b"\x1f\x8b")
    return folder / "run", folder / "photos.tar.gz", photos


def no_tar(folder: Path, _: Path) -> tuple[object, ...]:
    (folder / "photos.tar").write_bytes(b"x" * 2000)
    return folder / "run", folder / "photos.tar"


def zipped(folder: Path, photos: Path) -> tuple[object, ...]:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.write(photos / "0.jpg")
    return folder / "run", folder / "photos.zip"


def only_others(folder: Path, _: Path) -> tuple[object, ...]:
    (folder / "phone").mkdir()
    (folder / "phone" / "1.HEIC").write_bytes(b"x")
    return folder / "run", folder / "phone"


def all_bad(folder: Path, _: Path) -> tuple[object, ...]:
    (folder / "a.jpg").write_bytes(b"x")
    return folder / "run", folder / "a.jpg", "--csv", folder / "out.csv"


def broken_graph(folder: Path, photos: Path) -> tuple[object, ...]:
    (folder / "graph").mkdir()
    (folder / "graph" / "model.onnx").write_bytes(b"onnx")
    description = {"model": {"variant": "tiny"}, "classes": [], "loss": "softmax", "resize": "square"}
    (folder / "graph" / "model.json").write_text(json.dumps(description))
    return folder / "graph", photos


@pytest.mark.usefixtures("_shallow")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (lambda folder, photos: (folder / "nowhere", photos), ["MODEL", "nowhere", "does not exist"]),
        (lambda _, photos: (photos, photos), ["config.json", "vit export"]),
        (lambda folder, _: (folder / "run", folder / "none.jpg"), ["IMAGE", "none.jpg", "does not exist"]),
        (lambda folder, _: (folder / "run", folder / "empty"), ["IMAGE", "contains no images", "jpg"]),
        (lambda folder, _: (folder / "run",), ["IMAGE"]),
        (lambda folder, photos: (folder / "run", photos, "--batch", 0), ["--batch 0", "at least 1"]),
        (lambda folder, photos: (folder / "run", photos, "--top", "many"), ["--top", "many"]),
        (lambda folder, photos: (folder / "run", photos, "--csv", folder / "no" / "a.csv"), ["--csv", "exists"]),
        (lambda folder, photos: (folder / "run", photos, "--rollout", photos / "0.jpg"), ["--rollout", "is a file"]),
        (lambda folder, photos: (folder / "run", photos, "--rollout", photos / "looks"), ["--rollout", "or inside it"]),
        (zipped, ["IMAGE", "is a zip", "unpack it"]),
        (only_others, ["IMAGE", "contains no images", "it has 1 .heic", "convert"]),
        (lambda folder, photos: (folder / "run", photos, "--average"), ["averaged weights", "--train.average"]),
        (lambda folder, photos: (folder / "run", photos, "--dtype", "int8"), ["--dtype", "bfloat16"]),
        (lambda folder, photos: (folder / "run", photos, "--tpo", 3), ["--tpo", "--top"]),
        (graph_without_names, ["model.onnx", "no model.json beside it"]),
        (broken_graph, ["model.onnx", "can't be read", "export it again"]),
        (compressed, ["photos.tar.gz", "compressed", "decompress it"]),
        (no_tar, ["photos.tar", "can't be read as a tar"]),
        (all_bad, ["none of the 1 images could be read"]),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    arguments: Callable[[Path, Path], tuple[object, ...]],
    parts: list[str],
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    (tmp_path / "empty").mkdir()
    words = arguments(tmp_path, photos)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        call(monkeypatch, *words)
    for part in parts:
        assert part in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("_shallow")
def test_a_graph_refuses_what_needs_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "torch"])
    export.main()
    with pytest.raises(UserError, match=r"--rollout needs the weights"):
        call(monkeypatch, tmp_path / "out", photos, "--rollout", tmp_path / "looks", "--trust-code")
    with pytest.raises(UserError, match="float32 weights"):
        call(monkeypatch, tmp_path / "out", photos, "--dtype", "bfloat16")
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "out"), str(tmp_path / "again")])
    with pytest.raises(UserError, match="compiled graph"):
        export.main()


@pytest.mark.usefixtures("_shallow")
def test_a_torch_archive_runs_only_when_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch.export's loader executes what an archive names as its guards: a file from elsewhere could be anything."""
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "torch"])
    export.main()
    ran = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "out" / "model.pt2") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "out" / "model.pt2").unlink()
    with zipfile.ZipFile(tmp_path / "out" / "model.pt2", "w") as archive:
        for name, content in files.items():
            if name.endswith("models/model.json"):
                code = f"__import__('pathlib').Path({str(ran)!r}).touch() is None"
                content = json.dumps(json.loads(content) | {"guards_code": [code]}).encode()  # noqa: PLW2901
            archive.writestr(name, content)
    for model in (tmp_path / "out", tmp_path / "out" / "model.pt2"):
        with pytest.raises(UserError, match=r"can run any code .* safetensors, timm, .* --trust-code"):
            call(monkeypatch, model, photos)
    assert not ran.exists()
    call(monkeypatch, tmp_path / "out", photos, "--workers", 0, "--trust-code")
    assert ran.exists(), "what the refusal protects from"
    assert "warning: --trust-code" in capsys.readouterr().err


def test_a_huge_picture_is_bad_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpegs, "LARGEST_PIXELS", 1000)
    jpeg = simplejpeg.encode_jpeg(np.zeros((40, 40, 3), np.uint8))
    png = io.BytesIO()
    Image.new("RGB", (40, 40)).save(png, "PNG")
    for data in (jpeg, png.getvalue()):
        with pytest.raises(ValueError, match="40 x 40 pixels"):
            image_files.prepared(data, 32, "square")


@pytest.mark.parametrize("sampling", [0x31, 0x42, 0x14])
def test_a_jpeg_of_unusual_chroma_sampling_is_a_picture(sampling: int) -> None:
    jpeg = bytearray(simplejpeg.encode_jpeg(np.full((48, 48, 3), [200, 30, 90], np.uint8), 95, "RGB", "444"))
    jpeg[jpeg.index(b"\xff\xc0") + 11] = sampling  # of luma: its blocks no longer reach to the end
    with pytest.raises(ValueError, match=r"subsampling|no JPEG header"):
        jpegs.size(bytes(jpeg))
    assert image_files.prepared(bytes(jpeg), 16, "square").shape == (16, 16, 3)


def test_square_brackets_are_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    odd = tmp_path / "p[" / "b].jpg"
    odd.parent.mkdir()
    odd.write_bytes(next(iter(sorted(photos.iterdir()))).read_bytes())
    call(monkeypatch, tmp_path / "run", odd)
    assert "b].jpg" in capsys.readouterr().out
    with pytest.raises(UserError, match="name two files"):
        call(monkeypatch, tmp_path / "run", odd, "--csv", tmp_path / "q", "--parquet", os.path.relpath(tmp_path / "q"))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("rows", [0, 10_000])
def test_a_full_disk_is_named_with_the_file_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    monkeypatch.setattr(predictions, "temporary", lambda path: path.with_name("aside"))
    (tmp_path / "aside").symlink_to("/dev/full")
    own = tmp_path / name
    paths = (str(own), None) if name.endswith("csv") else ("", own)
    known = [Named("n1", "cat")]
    with (
        pytest.raises((OSError, UserError), match=rf"{name}.*No space left|No space left.*{name}"),
        Files(*paths, known, 1) as files,
    ):
        files.add([Answer(f"{number}.jpg", (0,), (1.0,)) for number in range(rows)])
    assert list(tmp_path.iterdir()) == []
