"""The registered model in a process that has only what MLflow stored: where its code lies, and what it answers."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs import predict
from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.imaging import bicubic, jpeg
from pipeline.inference.image_files import ORIENTATION, prepared
from pipeline.model.preprocess import normalise
from pipeline.model.vit import VisionTransformer
from pipeline.tracking.registry import model_parts
from tests.helpers.runs import make_run, run_export

pytestmark = pytest.mark.filterwarnings("ignore")  # of mlflow's model loader and of what it imports

SIZE = 32  # pixels
MODEL = ModelConfig("tiny", SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# -I and -S leave out the current folder, PYTHONPATH, and the .pth files by which an editable install is found
FRESH = """
import json, pathlib, sys
model, photo, *packages = sys.argv[1:]
sys.path += packages
import mlflow, pandas
classifier = mlflow.pyfunc.load_model(model)
answers = classifier.predict(pandas.DataFrame({"image": [pathlib.Path(photo).read_bytes()]}))
own = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pipeline"}
print(json.dumps({
    "files": {name: module.__file__ for name, module in own.items()},
    "extensions": [own["pipeline.imaging.bicubic"].HAS_EXTENSION, own["pipeline.imaging.jpeg"].HAS_REGION_DECODER],
    "too_much": sorted({"accelerate", "deepspeed", "tyro"} & sys.modules.keys()),
    "answer": answers.iloc[0].to_dict(),
}))
"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG stored on its side: its EXIF orientation says to turn it by 90 degrees."""
    coarse = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC).save(path, exif=exif, quality=95)
    return path


@pytest.fixture(scope="module")
def upright_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VisionTransformer]:
    """A run whose training images were stored upright, and its model. The way of resizing needs a C extension."""
    run = tmp_path_factory.mktemp("upright") / "run"
    return run, make_run(run, MODEL, resize="bicubic", loss="sigmoid", upright=True)


@pytest.fixture(scope="module")
def stored(upright_run: tuple[Path, VisionTransformer]) -> Path:
    """The run's model as MLflow stores it."""
    run, _ = upright_run
    parts = model_parts(run, run.parent / "parts")
    del parts["input_example"]  # MLflow would load the model in this process, for seconds, to try it
    mlflow.pyfunc.save_model(run.parent / "stored", **parts)
    return run.parent / "stored"


@pytest.fixture(scope="module")
def fresh(stored: Path, photo: Path) -> dict[str, Any]:
    """What the stored model answers about the photo in a new process, and which code it runs there."""
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", FRESH, str(stored), str(photo), *packages],
        cwd="/", env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_code_is_the_models_own(fresh: dict[str, Any], stored: Path) -> None:
    assert {"pipeline", "pipeline.inference.classifier", "pipeline.model.vit"} <= fresh["files"].keys()
    assert {Path(file).is_relative_to(stored / "code" / "pipeline") for file in fresh["files"].values()} == {True}
    assert fresh["extensions"] == [bicubic.HAS_EXTENSION, jpeg.HAS_REGION_DECODER], "the compiled files are stored, too"
    assert fresh["too_much"] == [], "a server that answers needs no package of training or of the command line"


def test_it_answers_as_the_model_does(
    fresh: dict[str, Any], upright_run: tuple[Path, VisionTransformer], photo: Path
) -> None:
    _, model = upright_run
    scores = []
    for upright in (True, False):
        image_HWC = prepared(photo.read_bytes(), SIZE, "bicubic", upright=upright)
        with torch.inference_mode():
            scores.append(model(normalise(torch.from_numpy(image_HWC)[None], torch.float32, MODEL))[0].sigmoid())
    turned, stored_C = scores[0].topk(5), scores[1]
    assert fresh["answer"]["class"] == turned.indices.tolist()
    assert fresh["answer"]["probability"] == pytest.approx(turned.values.tolist(), abs=1e-5)
    assert (turned.values - stored_C[turned.indices]).abs().max() > 1e-3, "the photo looks the same on its side"


def test_it_answers_as_jobs_predict_does(
    fresh: dict[str, Any], upright_run: tuple[Path, VisionTransformer], photo: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, _ = upright_run
    table = tmp_path / "out.csv"
    words = ["predict", run, photo, "--csv", table, "--workers", 0]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    assert predict.main() == 0
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    for column, kind in (("index", int), ("wnid", str), ("name", str)):
        own = fresh["answer"]["class" if column == "index" else column]
        assert own == [kind(row[f"{column}_{place}"]) for place in range(1, 6)]
    probabilities = [float(row[f"probability_{place}"]) for place in range(1, 6)]
    assert fresh["answer"]["probability"] == pytest.approx(probabilities, abs=1e-5)


def test_a_diverged_model_is_refused_as_by_jobs_predict(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not answered with probabilities that are NaN."""
    from pipeline.tracking.pyfunc_model import ImageClassifier  # warns, and this module's mark covers tests only

    folder = tmp_path / "export"
    make_run(tmp_path / "run", MODEL)
    assert run_export(monkeypatch, tmp_path / "run", folder, "--format", "safetensors") == 0
    weights = load_file(folder / "model.safetensors")
    weights["head.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors")
    said = "MODEL's outputs are non-finite: its training has diverged"
    monkeypatch.setattr(sys, "argv", ["predict", str(folder), str(photo), "--workers", "0"])
    with pytest.raises(UserError, match=said):
        predict.main()
    model = ImageClassifier()
    model.load_context(SimpleNamespace(artifacts={"model": folder}))
    with pytest.raises(mlflow.MlflowException, match=said):
        model.predict(None, pd.DataFrame({"image": [photo.read_bytes()]}))
