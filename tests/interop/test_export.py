"""jobs.export: what it writes gives the checkpoint's logits and says how to prepare images; refusals leave nothing."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.config.fields import PATHS
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core.errors import UserError
from pipeline.interop import export as exporting
from pipeline.interop import model_card, trained_model
from pipeline.interop.export import FORMATS, Format, write_torch
from pipeline.interop.load import load_weights
from pipeline.interop.native import DESCRIPTION
from pipeline.interop.onnx_file import check_onnx
from pipeline.model.vit import ARCHITECTURES, VisionTransformer
from pipeline.runs.suite_results import Result, write
from tests.helpers.models import random_model
from tests.helpers.ranks import run_ranks
from tests.helpers.runs import CLASSES, make_run, run_export

DEIT3 = ModelConfig(
    "tiny", 32, gelu="exact", layer_scale=1e-4, class_position=False, initialisation="deit3",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks are enough for a layout, and a graph of two is traced in seconds."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", replace(ARCHITECTURES["tiny"], depth=2))


def logits_differ(one: Callable[[torch.Tensor], torch.Tensor], other: Callable, size: int) -> float:  # type: ignore[type-arg]
    """On other images than the export itself looks at, and another number of them."""
    x_BCHW = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(9)).clamp(-1, 1)
    with torch.inference_mode():
        return float((one(x_BCHW) - other(x_BCHW)).abs().max())


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("form", FORMATS)
def test_the_export_has_the_checkpoints_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: Format, size: int
) -> None:
    resize = "square" if size == 32 else "central"
    model = make_run(tmp_path / "run", ModelConfig("tiny", size), resize=resize, loss="sigmoid")
    out = tmp_path / "out"
    run_export(monkeypatch, tmp_path / "run", out, "--format", form)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= report["largest_difference"] <= 1e-5
    assert report["resize"] == resize
    known = trained_model.read_description(out)
    if form in ("onnx", "torch"):  # model.json of another model beside the graph
        for other in (
            replace(known, classes=known.classes[1:]),
            replace(known, model=replace(known.model, image_size=64)),
        ):
            with pytest.raises(UserError, match=r"model\.(onnx|pt2)' has inputs .* export the model again"):
                exporting.read_back(out, form, other)
    again = exporting.read_back(out, form, known)
    assert logits_differ(again, model, size) <= 1e-5
    assert logits_differ(lambda x_BCHW: again(x_BCHW) + 2e-5, model, size) > 1e-5
    for file in out.iterdir():
        assert file.stat().st_mode & 0o044 == out.stat().st_mode & 0o044, f"{file.name} is for its owner alone"
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content, f"{file.name} names a folder of this machine"
        assert str(Path(exporting.__file__).parents[2]).encode() not in content, f"{file.name} names our source folder"


@pytest.mark.parametrize("form", ["onnx", "torch", "safetensors", "npz"])
def test_pre_logits_leave_in_the_formats_that_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Format
) -> None:
    gelu = "tanh" if form == "npz" else "exact"
    model = make_run(tmp_path / "run", ModelConfig("tiny", 32, pre_logits=True, gelu=gelu))
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", form)
    again = exporting.read_back(tmp_path / "out", form, trained_model.read_description(tmp_path / "out"))
    assert logits_differ(again, model, 32) <= 1e-5


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "npz"])
def test_a_model_of_deit3_leaves_with_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Format) -> None:
    """Of the published layout, npz, only the GELU is wrong for it: see what is refused."""
    model = make_run(tmp_path / "run", DEIT3, resize="bicubic")
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", form)
    known = trained_model.read_description(tmp_path / "out")
    assert logits_differ(exporting.read_back(tmp_path / "out", form, known), model, 32) <= 1e-5
    assert (known.model.mean, known.model.std, known.resize) == (DEIT3.mean, DEIT3.std, "bicubic")


@pytest.mark.parametrize("form", ["timm", "huggingface"])
@pytest.mark.parametrize("resize", ["square", "central"])
def test_formats_with_their_own_words_for_it_say_how_images_are_resized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, resize: str
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32), resize=resize)
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", form)
    (tmp_path / "out" / DESCRIPTION).unlink()
    assert load_weights(tmp_path / "out")[2]["resize"] == resize
    known = trained_model.load(tmp_path / "out").description
    assert known.resize == resize
    assert known.classes[3].name == "name 3"


def test_the_card_tells_results_data_lineage_and_recipe_and_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32), resize="central")
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", "safetensors")
    text = (tmp_path / "out" / "README.md").read_text()
    for part in ("eval/top1: 0.5000", "digest-of-data", '"the-parent"', "7 steps", '"mine"', "square of 7/8"):
        assert part in text
    assert "/" not in text.split("## Lineage")[1]


def test_the_card_has_the_suites_results_also_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of these very weights: another step's, and the average's, are left out; a partial set is no result."""
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    scores = {"samples": 7500.0, "top1": 0.3125, "top5": 0.5}
    for result in (
        Result("a", "ImageNet-A", scores, "k", step=7),
        Result("features-mine-1-shot", 'mine: "ß" | x', {"samples": 90.0, "top1": 0.5, "std": 0.125}, "k", step=7),
        Result("sketch", "ImageNet-Sketch", scores, "k", step=7, partial=True),
        Result("r", "ImageNet-R", scores, "k", step=3),
        Result("v2", "ImageNet-V2", scores, "k", step=7, average=True),
        Result("c/fog/3", "fog", scores, "k", step=7),
    ):
        write(tmp_path / "run" / "evaluations", result)
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", "timm")
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    content = yaml.safe_load(front)
    assert {name: content[name] for name in ("library_name", "pipeline_tag", "tags")} == {
        "library_name": "timm", "pipeline_tag": "image-classification", "tags": ["vision-transformer"],
    }  # fmt: skip
    (entry,) = content["model-index"]
    assert entry["name"] == "ViT tiny, 10 classes"
    task = {"type": "image-classification", "name": "Image Classification"}
    assert entry["results"] == [
        {
            "task": task,
            "dataset": {"name": "ImageNet-A", "type": "imagenet-a"},
            "metrics": [
                {"type": "accuracy", "name": "Top-1 accuracy", "value": 0.3125},
                {"type": "accuracy", "name": "Top-5 accuracy", "value": 0.5},
            ],
        },
        {
            "task": task,
            "dataset": {"name": 'mine: "ß" | x', "type": "features-mine-1-shot"},
            "metrics": [{"type": "accuracy", "name": "Top-1 accuracy", "value": 0.5}],
        },
    ]
    assert "| ImageNet-A | 7,500 | 31.25% | 50.00% |" in body
    assert '| mine: "ß" \\| x | 90 | 50.00% ± 12.50% |  |' in body
    assert "| ImageNet-Sketch (partial) |" in body
    assert "ImageNet-R" not in body
    assert "ImageNet-V2" not in body


def test_the_card_names_no_path_in_any_field() -> None:
    tree = to_dict(RunConfig())
    for name in PATHS:
        *section, field = name.split(".")
        place = tree[section[0]] if section else tree
        place[field] = ["/home/me/it"] if isinstance(place[field], list) else "/home/me/it"
    shown = flatten(model_card._named(tree, PATHS))
    assert {name for name, value in shown.items() if value in ("it", ["it"])} == PATHS
    assert "/home" not in json.dumps(shown)


def test_an_average_says_so_and_gives_its_own_results_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32), average=True)
    for name, options, order in (("last", (), (0.5, 0.625)), ("average", ("--average",), (0.625, 0.5))):
        run_export(monkeypatch, tmp_path / "run", tmp_path / name, "--format", "safetensors", *options)
        text = (tmp_path / name / "README.md").read_text()
        assert [float(line.split()[-1]) for line in text.splitlines() if "/top1" in line] == list(order)
        assert ("running average" in text.split("## Results")[0]) == (name == "average")
        assert json.loads((tmp_path / name / DESCRIPTION).read_text()).get("average", False) == (name == "average")


def test_an_export_is_exported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats lead into one another, and classes and preparation come along."""
    model = make_run(tmp_path / "run", ModelConfig("tiny", 32), resize="central", loss="sigmoid")
    source = tmp_path / "run"
    for form in ("npz", "huggingface", "safetensors", "timm"):
        run_export(monkeypatch, source, tmp_path / form, "--format", form)
        source = tmp_path / form
    last = trained_model.load(source)
    assert logits_differ(exporting.build(last), model, 32) <= 1e-5
    assert (last.description.resize, last.description.loss) == ("central", "sigmoid")
    assert [entry.wnid for entry in last.description.classes] == [f"n{index}" for index in range(CLASSES)]


def test_published_weights_get_the_names_of_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.interop import npz

    model = random_model(ModelConfig("tiny", 32), 1000)
    npz.write(tmp_path / "B_16-imagenet2012.npz", model.config, model.state_dict())
    run_export(monkeypatch, tmp_path / "B_16-imagenet2012.npz", tmp_path / "out", "--format", "timm")
    classes = trained_model.read_description(tmp_path / "out").classes
    assert (classes[0].wnid, classes[0].name) == ("n01440764", "tench, Tinca tinca")
    assert "Recipe" not in (tmp_path / "out" / "README.md").read_text()


def test_a_thousand_classes_are_not_imagenet_s_unless_the_file_says_so(tmp_path: Path) -> None:
    from pipeline.interop import npz

    model = random_model(ModelConfig("tiny", 32), 1000)
    npz.write(tmp_path / "mine.npz", model.config, model.state_dict())
    assert trained_model.load(tmp_path / "mine.npz").description.classes[0] == trained_model.Named("", "class 0")


def test_any_stage_and_number_of_ranks_leaves_the_same_model(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same training under each: the exports agree as closely as float32 sums in another order can."""
    monkeypatch.undo()  # the ranks have all six blocks
    exports = []
    for world, stage in ((1, 0), (2, 1), (2, 2), (2, 3)):
        run = tmp_path / f"run-{world}-{stage}"
        job = ("-m", "jobs.pretrain", "tiny", "--run-dir", run, "--data.train", digits, "--data.workers", 0)
        options = ("--schedule.steps", 2, "--schedule.warmup-steps", 0, "--train.zero-stage", stage)
        run_ranks(world, (*job, *options, "--train.micro-batch", 8), tmp_path / f"log-{stage}")
        out = tmp_path / f"out-{stage}"
        run_export(monkeypatch, run, out, "--format", "safetensors")
        exports.append(exporting.build(trained_model.load(out)))
    start = random_model(ModelConfig("tiny", exports[0].config.image_size), CLASSES).eval()
    assert logits_differ(exports[0], start, exports[0].config.image_size) > 0.01
    for other in exports[1:]:
        assert logits_differ(exports[0], other, other.config.image_size) < 1e-3


@pytest.mark.parametrize(
    ("config", "arguments", "parts"),
    [
        (ModelConfig("tiny", 32, pre_logits=True), ("--format", "timm"), ["pre_logits", "npz, onnx or safetensors"]),
        (ModelConfig("tiny", 32, pre_logits=True), ("--format", "huggingface"), ["pre_logits", "npz, onnx"]),
        (ModelConfig("tiny", 32, gelu="exact"), ("--format", "npz"), ["differ", "model.gelu 'exact'", "safetensors"]),
        (DEIT3, ("--format", "npz"), ["differ", "model.gelu 'exact'", "safetensors"]),
        (ModelConfig("tiny", 32, norm_eps=1e-2), ("--format", "npz"), ["differ", "model.norm_eps 0.01"]),
        (ModelConfig("tiny", 32), ("--average",), ["averaged weights", "--train.average"]),
        (ModelConfig("tiny", 32), ("--format", "tflite"), ["tflite", "onnx", "--help"]),
        (ModelConfig("tiny", 32), ("--fromat", "npz"), ["--fromat", "--format"]),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ModelConfig, arguments: tuple[str, ...], parts: list[str]
) -> None:
    make_run(tmp_path / "run", config)
    with pytest.raises(UserError) as caught:
        run_export(monkeypatch, tmp_path / "run", tmp_path / "out", *arguments)
    for part in parts:
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def cut_weights(run: Path) -> Path:
    file = next(run.rglob("state-*"))
    file.write_bytes(file.read_bytes()[:1000])
    return run


def lose_classes(run: Path) -> Path:
    (run / "classes.json").unlink()
    return run


def folder_of_text(run: Path) -> Path:
    (run.parent / "text").mkdir()
    (run.parent / "text" / "notes.txt").write_text("no model")
    return run.parent / "text"


def other_file(run: Path) -> Path:
    (run.parent / "model.bin").write_bytes(b"0")
    return run.parent / "model.bin"


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda run: run.parent / "nowhere", ["nowhere", "does not exist", "run folder"]),
        (cut_weights, ["no complete checkpoint"]),
        (lose_classes, ["classes.json", "run folder as training left it"]),
        (folder_of_text, ["text", "config.json"]),
        (other_file, ["model.bin", "not a .npz"]),
    ],
)
def test_models_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Path], parts: list[str]
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    model = damage(tmp_path / "run")
    with pytest.raises(UserError) as caught:
        run_export(monkeypatch, model, tmp_path / "out")
    for part in parts:
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_no_process(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_torch(path, random_model(ModelConfig("tiny", 16), 3).eval())


def test_an_output_that_exists_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        run_export(monkeypatch, tmp_path / "run", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        run_export(monkeypatch, tmp_path / "run", tmp_path / "file" / "out")


def test_onnx_s_packages_print_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("onnxscript").setLevel(logging.NOTSET)  # as in a new process
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", "onnx")
    assert not [record for record in caplog.records if record.name.startswith(("onnx", "torch.onnx"))]


def test_an_onnx_file_stays_in_its_folder_and_its_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", "onnx")
    path = tmp_path / "out" / "model.onnx"
    check_onnx(path)
    for location in ("../elsewhere", "/etc/passwd", "a/../../b", "C:\\data", "..\\b"):
        model = onnx.load(str(path))
        entry = model.graph.initializer[0].external_data.add()
        entry.key, entry.value = "location", location
        (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="outside its own folder"):
            check_onnx(tmp_path / "bad.onnx")
    for domain, operator in (("evil", "Run"), ("com.microsoft", "EPContext")):
        model = onnx.load(str(path))
        branch = onnx.helper.make_graph([onnx.helper.make_node(operator, [], ["y"], domain=domain)], "inner", [], [])
        model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
        (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match=f"{domain}::{operator}"):
            check_onnx(tmp_path / "bad.onnx")


def test_the_code_of_the_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the formats that need no peer."""
    import cv2

    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((40, 50, 3), np.uint8))
    make_run(tmp_path / "run", ModelConfig("tiny", 32), resize="central")
    for form, said in (("onnx", "name "), ("torch", "tensor("), ("npz", "(128, 10)"), ("safetensors", "[10, 128]")):
        run_export(monkeypatch, tmp_path / "run", tmp_path / form, "--format", form)
        capsys.readouterr()
        text = (tmp_path / form / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0]
        assert code.strip() == model_card.use(form, ModelConfig("tiny", 32), "central")
        exec(code, {"FOLDER": str(tmp_path / form), "IMAGE": str(tmp_path / "image.png")})
        assert said in capsys.readouterr().out


def test_a_model_that_has_diverged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("tiny", 32)
    weights = {
        name: torch.full_like(tensor, torch.nan) for name, tensor in VisionTransformer(config, 10).state_dict().items()
    }
    make_run(tmp_path / "run", config, weights=weights)
    with pytest.raises(UserError, match="its training has diverged"):
        run_export(monkeypatch, tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    good, bad = (lambda x: x.mean((2, 3))), (lambda x: x.mean((2, 3)) * torch.nan)
    assert exporting.difference(good, good, 4)[0] == 0
    assert exporting.difference(good, bad, 4)[0] == torch.inf


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
@pytest.mark.parametrize("named", [True, False])
def test_a_broken_checkpoint_is_named(
    damage: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000007"
    state = checkpoint / "state-000.safetensors"
    data = bytearray(state.read_bytes())
    data[-9] ^= 1
    state.write_bytes(data[:1000] if damage == "cut" else data)
    if damage == "gone":
        state.unlink()
    with pytest.raises(UserError, match="is broken" if named or damage == "flipped" else "has no complete checkpoint"):
        run_export(monkeypatch, checkpoint if named else tmp_path / "run", tmp_path / "out")
