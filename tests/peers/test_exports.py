"""Exports of jobs.export, run by the projects they are for, from an image file to logits."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.peers import import_peer
from pipeline.config.schema import ModelConfig, Variant
from pipeline.inference.image_files import prepared
from pipeline.interop import export as exporting
from pipeline.interop import trained_model
from pipeline.model.preprocess import normalise
from pipeline.model.transfer import resize_pos_embed
from pipeline.model.vit import ARCHITECTURES
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import make_run, run_export

pytestmark = pytest.mark.peers

TOLERANCE = 1e-5
FORMS = ("timm", "huggingface", "npz", "onnx")
WITH_PRE_LOGITS = (
    "npz",
    "onnx",
)  # the others have no place for the layer: tests/interop/test_export.py has their refusal


def timms(folder: Path, picture: Path) -> Tensor:
    timm = import_peer("timm")
    data = import_peer("timm.data")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    return model(transform(Image.open(picture).convert("RGB"))[None])  # type: ignore[no-any-return]


def transformers_(folder: Path, picture: Path) -> Tensor:
    transformers = import_peer("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    inputs = processor(Image.open(picture).convert("RGB"), return_tensors="pt")
    return model(**inputs).logits  # type: ignore[no-any-return]


def by_timms_reader_of_npz(folder: Path, picture: Path) -> Tensor:
    """timm's reader of Google's files stands for Flax, whose arrays it takes name by name.

    timm has no pre_logits any more: tanh(z @ kernel + bias), as Flax's Dense, is put before its head.
    """
    known = trained_model.read_description(folder)
    sizes = ARCHITECTURES[known.model.variant]
    model = import_peer("timm").models.VisionTransformer(
        img_size=known.model.image_size,
        patch_size=sizes.patch,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.mlp / sizes.width,
        num_classes=len(known.classes),
        act_layer="gelu_tanh",
    )
    model.load_pretrained(str(folder / "model.npz"))
    if known.model.pre_logits:
        with np.load(folder / "model.npz") as arrays:
            kernel, bias = (torch.from_numpy(arrays[f"pre_logits/{name}"]) for name in ("kernel", "bias"))
        model.head.register_forward_pre_hook(lambda _, inputs: torch.tanh(inputs[0] @ kernel + bias))
    return model.eval()(ours_input(picture, known))  # type: ignore[no-any-return]


def onnxruntimes(folder: Path, picture: Path) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    images = ours_input(picture, trained_model.read_description(folder)).numpy()
    return torch.from_numpy(session.run(None, {"images": images})[0])


READERS: dict[str, Callable[[Path, Path], Tensor]] = dict(
    zip(FORMS, (timms, transformers_, by_timms_reader_of_npz, onnxruntimes), strict=True)
)


def ours_input(picture: Path, known: trained_model.Description) -> Tensor:
    image_HWC = prepared(picture.read_bytes(), known.model.image_size, known.resize)
    return normalise(torch.from_numpy(image_HWC)[None], torch.float32, known.model)


def picture_without_resampling(path: Path, size: int, resize: str) -> Path:
    """Noise, of a size that the model's own preparation leaves as it is, or only crops: every library's pixels agree.

    (``size`` times 8/7 must be whole for central.)

    A crop in the wrong place, or a resize to the square instead of a crop, gives other pixels altogether.
    """
    side = round(size * 8 / 7) if resize == "central" else size
    noise = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@torch.inference_mode()
def check(run: Path, form: str, monkeypatch: pytest.MonkeyPatch, resize: str) -> None:
    out = run.parent / f"{run.name}-{form}"
    run_export(monkeypatch, run, out, "--format", form)
    model = trained_model.load(run)
    picture = picture_without_resampling(run.parent / "noise.png", model.description.model.image_size, resize)
    ours = exporting.build(model)(ours_input(picture, model.description))
    theirs = READERS[form](out, picture)
    largest = max(1.0, float(ours.abs().max()))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=TOLERANCE * largest)
    if resize == "central":
        description = dataclasses.replace(model.description, resize="square")
        wrong = exporting.build(model)(ours_input(picture, description))
        assert float((wrong - ours).abs().max()) > 100 * TOLERANCE, "the preparation makes no difference: test nothing"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("variant", "size", "resize"),
    [("b32", 224, "central"), ("b16", 224, "square"), ("l16", 224, "central"), ("l32", 384, "square")],
)
def test_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, variant: Variant, size: int, resize: str
) -> None:
    """At each variant's width, heads and patch, two blocks deep."""
    monkeypatch.setitem(ARCHITECTURES, variant, dataclasses.replace(ARCHITECTURES[variant], depth=2))
    make_run(tmp_path / "run", ModelConfig(variant, size), resize=resize)
    check(tmp_path / "run", form, monkeypatch, resize)


@pytest.mark.parametrize("form", ["timm", "huggingface", "onnx"])
@pytest.mark.parametrize(("variant", "size"), [("b16", 224), ("l16", 384)])
def test_random_weights_of_deit3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, variant: Variant, size: int
) -> None:
    """Its model and its inputs; the GELU of the npz layout is another, so that it is refused."""
    monkeypatch.setitem(ARCHITECTURES, variant, dataclasses.replace(ARCHITECTURES[variant], depth=2))
    config = ModelConfig(
        variant, size, gelu="exact", layer_scale=1e-4, class_position=False,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    make_run(tmp_path / "run", config, resize="bicubic")
    check(tmp_path / "run", form, monkeypatch, "bicubic")


@pytest.mark.parametrize("form", ["timm", "npz", "onnx"])
def test_random_weights_of_a_whole_b32_at_384(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    make_run(tmp_path / "run", ModelConfig("b32", 384))
    check(tmp_path / "run", form, monkeypatch, "square")


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("form", WITH_PRE_LOGITS)
def test_random_weights_with_pre_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, size: int) -> None:
    monkeypatch.setitem(ARCHITECTURES, "b32", dataclasses.replace(ARCHITECTURES["b32"], depth=2))
    make_run(tmp_path / "run", ModelConfig("b32", size, pre_logits=True))
    check(tmp_path / "run", form, monkeypatch, "square")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "pre_logits"])
def learned(request: pytest.FixtureRequest, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of real training: 40 steps on digits, without and with pre_logits."""
    run = tmp_path_factory.mktemp("learned") / "run"
    job = ("-m", "jobs.pretrain", "tiny", "--run-dir", run, "--data.train", digits, "--data.flip", False)
    options = ("--schedule.steps", 40, "--model.image-size", 56, "--data.eval-resize", "central", "--data.workers", 1)
    run_ranks(1, (*job, *options, "--model.pre-logits", request.param), run.parent / "log")
    return run


@pytest.mark.parametrize(("size", "resize"), [(56, "central"), (224, "central"), (384, "square")])
@pytest.mark.parametrize("form", FORMS)
def test_trained_weights(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, size: int, resize: str
) -> None:
    """As they were trained, and resized as fine-tuning begins at 224 and 384 pixels."""
    known = trained_model.load(learned)
    assert known.metrics["eval/top1"] > 0.3, "it has learned nothing"
    config, run = known.description.model, learned
    if config.pre_logits and form not in WITH_PRE_LOGITS:
        pytest.skip(f"{form} doesn't support pre_logits: tests/interop/test_export.py tests the error")
    if size != config.image_size:
        grid = size // ARCHITECTURES[config.variant].patch
        weights = dict(known.weights) | {"pos_embed": resize_pos_embed(known.weights["pos_embed"], grid)}
        run = tmp_path / "run"
        make_run(run, dataclasses.replace(config, image_size=size), resize=resize, weights=weights)
    check(run, form, monkeypatch, resize)


@pytest.mark.parametrize("form", ["timm", "huggingface"])
def test_the_code_of_the_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    for name in ("timm", "transformers"):
        import_peer(name)
    make_run(tmp_path / "run", ModelConfig("tiny", 56), resize="central")
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", form)
    picture = picture_without_resampling(tmp_path / "noise.png", 56, "central")
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("local-dir:FOLDER", f"local-dir:{tmp_path / 'out'}")
    capsys.readouterr()
    exec(code, {"FOLDER": str(tmp_path / "out"), "IMAGE": str(picture)})
    model = trained_model.load(tmp_path / "run")
    best = int(exporting.build(model)(ours_input(picture, model.description)).argmax())
    assert capsys.readouterr().out.strip().splitlines()[-1] in (f"n{best}", f"name {best}")
