"""Photos with an EXIF orientation: counted and warned of, stored upright on request, and turned at prediction."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from data_prep import shard
from data_prep.images import prepare
from data_prep.images._lossless import turned
from data_prep.images.jpeg_header import jpeg_header
from data_prep.images.prepare import ImageOptions
from jobs import predict
from pipeline.config.schema import ModelConfig
from pipeline.dataset import format as dataset_format
from pipeline.inference.image_files import prepared
from pipeline.interop import trained_model
from tests.helpers.jpegs import encode
from tests.helpers.runs import make_run, run_export

UPRIGHT = ImageOptions(upright=True)
SIDES = {"mcus": (64, 96), "odd": (61, 83)}  # height and width: whole MCUs, and not
BACK = {6: 8, 8: 6}  # orientations that undo each other; the others undo themselves


def with_orientation(data: bytes, orientation: int) -> bytes:
    return prepare._turned(data, orientation)


def seen(data: bytes) -> np.ndarray:
    """The pixels as an image viewer shows them, by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", "gray"])
@pytest.mark.parametrize("sides", SIDES)
def test_every_orientation_is_stored_as_it_is_seen(orientation: int, sampling: str, sides: str) -> None:
    plain = encode(*SIDES[sides], "420" if sampling == "gray" else sampling, sampling != "gray")
    photo = with_orientation(plain, orientation)
    stored = prepare.prepare(photo, UPRIGHT)
    expected = seen(photo)
    assert stored.orientation == jpeg_header(stored.data).orientation == 1
    assert (stored.height, stored.width) == expected.shape[:2]
    assert seen(stored.data).shape == expected.shape
    assert np.abs(seen(stored.data) - expected).mean() < (1 if stored.recoded == "upright" else 4)
    if sides == "mcus" and sampling != "411":  # 4:1:1 turned is a sampling that decoders lack
        assert stored.recoded == "upright", "without loss"
        again = turned(stored.data, BACK.get(orientation, orientation))
        assert (simplejpeg.decode_jpeg(again) == simplejpeg.decode_jpeg(plain)).all()


def test_a_transposed_image_of_any_size_loses_nothing() -> None:
    plain = encode(61, 83, "420")
    stored = prepare.prepare(with_orientation(plain, 5), UPRIGHT)
    assert stored.recoded == "upright"
    assert (simplejpeg.decode_jpeg(turned(stored.data, 5)) == simplejpeg.decode_jpeg(plain)).all()


@pytest.mark.parametrize("bad", [b"", b"\xff\xd8", encode(64, 64)[:300], encode(64, 64)[:-400] + b"\xff\xd9"])
def test_damaged_bytes_are_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        turned(bad, 6)


@pytest.mark.parametrize("orientation", [-1, 0, 1, 9])
def test_other_orientations_are_refused(orientation: int) -> None:
    with pytest.raises(ValueError, match="is not one of 2 to 8"):
        turned(encode(64, 64), orientation)


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of photos; three of twelve have an orientation."""
    folder = tmp_path_factory.mktemp("phone") / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            data = encode(64, 96, seed=number)
            turned = {("cat", 0): 6, ("cat", 1): 3, ("dog", 0): 8}.get((name, number), 1)
            (folder / name / f"{number}.jpg").write_bytes(with_orientation(data, turned))
    return folder


def test_the_command_warns_and_stores_upright(phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shard.main([str(phone), str(tmp_path / "plain"), "--workers", "1", "--json"]) == 0
    said = capsys.readouterr()
    assert "warning: 3 images have an EXIF orientation, which training ignores" in said.err
    assert "--upright" in said.err
    assert json.loads(said.out)["sideways"] == 3
    assert "upright" not in dataset_format.read_info(tmp_path / "plain").options, "its bytes are what they were"
    assert shard.main([str(phone), str(tmp_path / "up"), "--workers", "1", "--upright"]) == 0
    assert "EXIF" not in capsys.readouterr().err
    assert dataset_format.read_info(tmp_path / "up").options["upright"] is True
    rows = dataset_format.read_index(tmp_path / "up").to_pylist()
    assert {row["orientation"] for row in rows} == {1}
    assert sorted(row["recoded"] for row in rows if row["recoded"]) == ["upright"] * 3
    assert sorted((row["width"], row["height"]) for row in rows).count((64, 96)) == 2


@pytest.mark.parametrize("upright", [True, False])
def test_a_model_turns_images_as_its_training_data_were(
    upright: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run, its export and jobs.predict: the run's data say it, model.json keeps it."""
    make_run(tmp_path / "run", ModelConfig("tiny", 32), upright=upright)
    assert trained_model.load(tmp_path / "run").description.upright is upright
    assert run_export(monkeypatch, tmp_path / "run", tmp_path / "export", "--format", "safetensors") == 0
    description = json.loads((tmp_path / "export" / "model.json").read_text())
    assert description["upright"] is upright
    assert ("EXIF" in description["input"]["geometry"]) is upright
    plain = encode(64, 96)
    photo = with_orientation(plain, 6)
    (tmp_path / "photo.jpg").write_bytes(photo)
    (tmp_path / "seen.jpg").write_bytes(turned(photo, 6) if upright else plain)
    probabilities = []
    for name in ("photo", "seen"):
        table = tmp_path / f"{name}.csv"
        words = [tmp_path / "export", tmp_path / f"{name}.jpg", "--csv", table, "--workers", 0]
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
        assert predict.main() == 0
        probabilities.append([float(cell) for cell in table.read_text().split("\n")[1].split(",") if "." in cell[:2]])
    capsys.readouterr()
    assert probabilities[0] == pytest.approx(probabilities[1], abs=5e-3)


def test_what_the_model_sees_is_turned() -> None:
    photo = with_orientation(encode(64, 96), 6)
    expected = prepared(turned(photo, 6), 32, "square").astype(int)
    assert np.abs(prepared(photo, 32, "square", upright=True) - expected).max() <= 3
    assert np.abs(prepared(photo, 32, "square") - expected).mean() > 10
