"""What model.json of an export, and meta.json and classes.json of a run, say of a model is honoured or refused in one
line that names the file: they may come from elsewhere, or have been edited by hand.
"""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.schema import ModelConfig
from pipeline.config.serialize import to_dict
from pipeline.core.errors import UserError
from pipeline.interop import export, trained_model
from pipeline.interop.native import DESCRIPTION
from pipeline.interop.trained_model import Description, Named, Trained
from pipeline.loader.transforms import eval_image
from pipeline.model.preprocess import normalise
from pipeline.model.vit import ARCHITECTURES, VisionTransformer
from tests.helpers.jpegs import encode
from tests.helpers.junk import JUNK
from tests.helpers.models import random_model
from tests.helpers.runs import make_run

SIZE = 48  # pixels
FORMS: tuple[export.Format, ...] = ("safetensors", "timm", "huggingface", "npz")
CLASSES = tuple(Named(f"n{index}", f"name {index}") for index in range(3))
MODEL_FIELDS = [f"model.{field.name}" for field in fields(ModelConfig)]
OTHERS = ["model", "classes", "classes.0", "classes.0.wnid", "classes.1.name", "loss", "resize", "format", "input"]
ALMOST = st.sampled_from(
    [
        "softmax", "sigmoid", "tanh", "exact", "vit", "deit3", "tiny", "b16", "square", "central", "bicubic",
        "square-bicubic", "square-x-bicubic", "central-0.9-bicubic", "central-1e-300-bicubic", "central-nan-bicubic",
        "0.5", "1e400", 1e300, 10**400, -(10**400), 1e39, -0.0, 1e-45, 48, 56, 65528, [0.5, 0.5, 0.5], [0.5] * 2,
        [0.4, 0.5, 1e39], [0, 0, 0], [1, 1, 1], [1e-9, 1, 1], [[0.5, 0.5, 0.5]], ["0.5"] * 3, [None] * 3, {"wnid": "a"},
        {"wnid": "a", "name": 1}, {"wnid": "a", "name": "b", "more": 1}, [{"wnid": "a", "name": "b"}] * 3,
    ]
)  # fmt: skip
VALUES = st.one_of(JUNK, ALMOST)
IMAGE = encode(64, 80)
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
ANY_DRAW = settings(max_examples=40, deadline=None, suppress_health_check=UNCHECKED)


@pytest.fixture(scope="module", autouse=True)
def _shallow() -> Iterator[None]:
    """Two blocks are enough for a layout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "tiny", replace(ARCHITECTURES["tiny"], depth=2))
        yield


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    model = random_model(ModelConfig("tiny", SIZE), len(CLASSES))
    for form in FORMS:
        (folder / form).mkdir()
        export.write(folder / form, form, Trained(Description(model.config, CLASSES), model.state_dict()))
    return folder


def with_value(tree: Any, name: str, value: Any) -> Any:
    """``tree`` with ``value`` in the place that a dotted name says."""
    first, _, rest = name.partition(".")
    key: Any = int(first) if first.isdecimal() else first
    tree[key] = with_value(tree[key], rest, value) if rest else value
    return tree


def changed(source: Path, folder: Path, file: str, name: str, value: Any) -> Path:
    """A folder of links to ``source``'s files, of which ``file`` has another value."""
    for path in (path for path in source.rglob("*") if path.is_file()):
        link = folder / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(with_value(json.loads((source / file).read_text()), name, value)))
    return folder


def check_usable(known: Description, classes: int) -> None:
    """A model can be built of it, an image prepared, and a name given to each class."""
    assert known.loss in ("softmax", "sigmoid")
    assert len(known.classes) == classes
    assert all(isinstance(text, str) for entry in known.classes for text in (entry.wnid, entry.name))
    with torch.device("meta"):
        VisionTransformer(known.model, classes)
    pixels = torch.from_numpy(eval_image(IMAGE, known.model.image_size, known.resize))[None]
    assert normalise(pixels, torch.float32, known.model).isfinite().all()
    trained_model.describe(known, "timm")


@pytest.mark.parametrize("form", FORMS)
@ANY_DRAW
@given(name=st.sampled_from([*MODEL_FIELDS, *OTHERS]), value=VALUES)
def test_any_value_in_model_json(exports: Path, tmp_path: Path, form: str, name: str, value: Any) -> None:
    folder = changed(exports / form, tmp_path / form, DESCRIPTION, name, value)
    try:
        known = trained_model.load(folder).description
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right
        assert DESCRIPTION in str(error) or str(folder) in str(error)  # noqa: PT017
        return
    check_usable(known, len(CLASSES))
    field = name.removeprefix("model.")
    honoured = to_dict(known.model)[field] if name in MODEL_FIELDS else None
    numeric = isinstance(honoured, (float, list))  # numbers may be given as texts, as YAML has 1e-3
    if name in MODEL_FIELDS and field not in trained_model._STRUCTURE and not (numeric and "'" in repr(value)):
        assert honoured == value
    if name in ("loss", "resize"):
        assert getattr(known, name) == value


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("loss", "hinge", "loss is 'hinge': give one of softmax, sigmoid"),
        ("resize", 3, "resize is 3: give a string"),
        ("resize", "central-1e-300-bicubic", "resize 'central-1e-300-bicubic' is unknown"),
        ("model", [1], "'model' is [1]: give a section of fields"),
        ("model.gelu", "relu", "model.gelu is 'relu': give one of tanh, exact"),
        ("model.norm_eps", -1, "model.norm_eps -1.0 is out of range: give a number of at least 0 and at most 1"),
        ("model.registers", -1, "model.registers -1 is out of range"),
        ("model.layer_scale", 1e300, "model.layer_scale 1e+300 is out of range"),
        ("model.mean", 0.5, "model.mean is 0.5: give a list of 3"),
        ("model.std", [0.5, 0, 0.5], "model.std 0.5 0.0 0.5 is out of range: give a number of at least 1e-09"),
        ("model.dropout", "x", "model.dropout is 'x': give a number"),
        ("model.initialisation", "he", "model.initialisation is 'he'"),
        ("model.invented", 1, "'model.invented' is unknown"),
        ("classes.0.name", 5, "name is 5: give a string"),
        ("classes.0", "dog", "is 'dog': give a section of fields"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(exports: Path, tmp_path: Path, name: str, value: Any, part: str) -> None:
    for form in FORMS:
        folder = changed(exports / form, tmp_path / form, DESCRIPTION, name, value)
        with pytest.raises(UserError) as error:
            trained_model.load(folder)
        assert str(folder / DESCRIPTION) in str(error.value)
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["model", "classes", "loss", "resize"])
def test_a_missing_field_is_named(exports: Path, tmp_path: Path, name: str) -> None:
    folder = changed(exports / "npz", tmp_path / "npz", DESCRIPTION, "format", "npz")
    tree = json.loads((folder / DESCRIPTION).read_text())
    del tree[name]
    (folder / DESCRIPTION).write_text(json.dumps(tree))
    if name in ("model", "classes"):
        with pytest.raises(UserError, match=f"field '{name}' is missing"):
            trained_model.load(folder)
    else:
        assert trained_model.load(folder).description == Description(ModelConfig("tiny", SIZE), CLASSES)


@pytest.mark.parametrize("form", ["timm", "huggingface"])
@pytest.mark.parametrize(("name", "value"), [("model.gelu", "exact"), ("model.mean", [0.1, 0.2, 0.3])])
def test_what_the_format_itself_says_otherwise_is_refused(
    exports: Path, tmp_path: Path, form: str, name: str, value: Any
) -> None:
    folder = changed(exports / form, tmp_path / form, DESCRIPTION, name, value)
    with pytest.raises(UserError, match=rf"another model .*other {name.removeprefix('model.')}"):
        trained_model.load(folder)


RUN_NAMES = ("step", "classes", "config", "files", "metrics", "skipped", "classes_digest", "format_version")
SECTIONS = ("config.model", "config.train", "config.model.registers", "config.model.mean", "config.data.eval_resize")


@pytest.mark.parametrize("file", ["meta.json", "classes.json"])
@ANY_DRAW
@given(data=st.data())
def test_any_value_in_the_files_of_a_run(tmp_path: Path, file: str, data: st.DataObject) -> None:
    source = tmp_path.parent / "source"
    if not source.exists():
        make_run(source, ModelConfig("tiny", 32))
    names = {"meta.json": (*RUN_NAMES, *SECTIONS), "classes.json": ("0", "0.wnid", "9.name")}[file]
    place = "checkpoints/step-00000007/meta.json" if file == "meta.json" else file
    name, value = data.draw(st.sampled_from(names)), data.draw(VALUES)
    try:
        found = trained_model.load(changed(source, tmp_path / "run", place, name, value))
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right
        return
    check_usable(found.description, 10)
