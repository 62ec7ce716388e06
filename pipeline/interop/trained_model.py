"""A trained model from any source: a run, a checkpoint, an export of ours, or published weights.

Each folder that jobs.export writes contains ``model.json``: the model's configuration, its classes, and how images are
prepared and logits interpreted. Formats that state this themselves (timm, transformers) are read without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pipeline.checkpoint import format as checkpoint
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import from_file, to_dict
from pipeline.core.errors import UserError
from pipeline.core.files import check_local, read_json, read_json_list
from pipeline.dataset.class_lists import listed, name_of
from pipeline.interop.load import KINDS, load_weights
from pipeline.interop.native import DESCRIPTION
from pipeline.loader.eval_geometry import geometry
from pipeline.runs.folder import CLASSES, FACTS, META, is_run

Loss = Literal["softmax", "sigmoid"]
_OF_WEIGHTS = ("variant", "image_size", "pre_logits")  # configuration fields that the weights themselves show
_STRUCTURE = ("layer_scale", "class_position", "registers")  # fields that an export may have merged into other tensors
_SAID = {  # configuration fields that other projects' files state beside the weights
    "timm": ("mean", "std", "gelu"),
    "huggingface": ("mean", "std", "gelu", "norm_eps"),
}
AVERAGED = "eval_average/"  # prefix of the running average's metrics


@dataclass(frozen=True)
class Named:
    """A class of the head."""

    wnid: str  # the class's folder name if it isn't a WordNet class; "" if unknown
    name: str


@dataclass(frozen=True)
class Description:
    """What is needed to use a model in addition to its weights: model.json."""

    model: ModelConfig
    classes: tuple[Named, ...]  # in index order
    loss: Loss = "softmax"  # sigmoid: independent probabilities per class, which don't sum to one
    resize: str = "square"  # geometry of input images: pipeline.loader.transforms.eval_image
    upright: bool = False  # rotate images by their EXIF orientation first (data_prep.shard --upright)


@dataclass(frozen=True)
class Trained:
    """Description, weights and history of a model."""

    description: Description
    weights: Mapping[str, Tensor]  # float32, with our names
    step: int = 0
    dataset_digest: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)  # from an evaluation at exactly this step
    config: Mapping[str, Any] = field(default_factory=dict)  # pipeline.config.schema.to_dict of the run, {} if unknown
    parent: Mapping[str, Any] = field(default_factory=dict)  # lineage
    average: bool = False  # the weights are the run's running average, not the last step's


def load(path: Path, *, average: bool = False) -> Trained:
    """Load a trained model. Raises UserError if there is none, or its weights can't be read (ONNX, torch.export).

    ``average``: take the run's running average of the weights.
    """
    if is_run_or_checkpoint(path):
        return _load_run(path, average=average)
    check_local(path, "MODEL")
    if not path.exists():
        raise UserError(f"MODEL {str(path)!r} does not exist: name {KINDS}")
    if average:
        raise UserError(f"--average needs a run that was trained with --train.average: {str(path)!r} is not a run")
    config, weights, facts = load_weights(path)
    classes = int(facts["classes"])
    if not classes:
        raise UserError(f"{str(path)!r} has no head: fine-tune it first, with --parent {path}")
    place = path if path.is_dir() else path.parent
    if (path.is_dir() or path.stem == "model") and (place / DESCRIPTION).is_file():  # else it belongs to another file
        description = read_description(place)
        if len(description.classes) != classes:
            raise UserError(
                f"{str(place / DESCRIPTION)!r} has {len(description.classes)} classes, but the weights have {classes}: "
                "export the model again"
            )
        _check_description(description, config, facts, place)
        model = replace(description.model, **{name: getattr(config, name) for name in _STRUCTURE})
        return Trained(replace(description, model=model), weights)
    labels = facts.get("labels") or published_classes(classes, imagenet=facts.get("imagenet", False))
    names = facts.get("descriptions") or (labels and [name_of(label) for label in labels])
    names = names or [f"class {index}" for index in range(classes)]
    wnids = labels or [""] * classes
    named = tuple(Named(str(wnid), str(name)) for wnid, name in zip(wnids, names, strict=True))
    return Trained(Description(config, named, facts.get("loss", "softmax"), facts.get("resize", "square")), weights)


def published_classes(classes: int, *, imagenet: bool) -> list[str] | None:
    """The wnids of a head whose file omits them: ImageNet-21K's by the head's size, ImageNet-1K's if it is stated."""
    choice = {21843: "google21k", 21841: "fall11", 11821: "imagenet12k", 1000: "imagenet1k" if imagenet else ""}.get(
        classes
    )
    return listed(choice) if choice else None


def _check_description(described: Description, config: ModelConfig, facts: Mapping[str, Any], place: Path) -> None:
    """Raise UserError if another program has saved another model beside our model.json since."""
    wnids = [entry.wnid or str(index) for index, entry in enumerate(described.classes)]
    names = [entry.name for entry in described.classes]
    differing = [name for name in _OF_WEIGHTS if getattr(described.model, name) != getattr(config, name)]
    said = _SAID.get(facts["format"], ())
    differing += [name for name in said if getattr(described.model, name) != getattr(config, name)]
    differing += [name for name in ("resize", "loss") if facts.get(name) not in (None, getattr(described, name))]
    differing += ["classes"] if facts.get("labels") not in (None, wnids, names) else []
    if differing:
        raise UserError(
            f"{str(place / DESCRIPTION)!r} belongs to another model than the one beside it "
            f"(other {', '.join(differing)}): remove {DESCRIPTION}, or export the model again"
        )


def is_run_or_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a run folder (also without checkpoints), or a checkpoint's folder in one."""
    return is_run(path) or checkpoint.is_checkpoint(path)


def _load_run(path: Path, *, average: bool) -> Trained:
    found = checkpoint.find(path)
    meta, run_dir = found.meta, found.path.parent.parent
    run = from_file(RunConfig, meta.config, found.path / META)
    weights = checkpoint.read_weights(found, average=average)
    remedy = "name a run folder as training left it"
    entries = read_json_list(run_dir / CLASSES, remedy)
    classes = tuple(from_file(Named, entry, run_dir / CLASSES, remedy) for entry in entries)
    if len(classes) != meta.classes:
        raise UserError(
            f"{str(run_dir / CLASSES)!r} has {len(classes)} classes, but the checkpoint has {meta.classes}: put back a "
            "copy of it"
        )
    facts = read_json(run_dir / FACTS, remedy)
    description = Description(run.model, classes, run.train.loss, run.data.eval_resize, trained_upright(facts))
    parent = facts.get("parent") or {}
    return Trained(description, weights, meta.step, meta.dataset_digest, meta.metrics, meta.config, parent, average)


def trained_upright(facts: Mapping[str, Any]) -> bool:
    """Whether run.json states for any of its datasets that the images were stored upright."""
    return any(part.get("upright") for part in facts.get("datasets", ()) if part.get("context") == "train")


def read_description(folder: Path) -> Description:
    """Read model.json. Raises UserError."""
    path = folder / DESCRIPTION
    content = read_json(path, "export the model again")
    named = {field.name: content[field.name] for field in fields(Description) if field.name in content}
    known = from_file(Description, named, path, "export the model again")
    try:
        geometry(known.resize)
    except UserError as error:
        raise UserError(f"{str(path)!r}: {error}") from error
    return known


def describe(description: Description, form: str) -> dict[str, Any]:
    """Content of model.json: the description, and image preparation in words for other programs."""
    size = description.model.image_size
    return {
        "format": form,
        "input": {
            "name": "images",
            "shape": ["batch", 3, size, size],
            "dtype": "float32",
            "channels": "RGB",
            "geometry": ("rotate as the EXIF orientation states, " if description.upright else "")
            + geometry_in_words(description.resize, size),
            "scaling": scaling_in_words(description.model),
        },
        "output": {"name": "logits", "shape": ["batch", len(description.classes)], "probabilities": description.loss},
        "loss": description.loss,
        "resize": description.resize,
        "upright": description.upright,
        "model": to_dict(description.model),
        "classes": [{"wnid": entry.wnid, "name": entry.name} for entry in description.classes],
    }


def geometry_in_words(resize: str, size: int) -> str:
    how = geometry(resize)
    if how.crop is None:
        return f"resize to {size} x {size}, {how.interpolation}"
    share = "7/8 of " if how.crop == 0.875 else "" if how.crop == 1 else f"{how.crop:g} of "
    return f"center-crop a square of {share}the short side, resize it to {size} x {size}, {how.interpolation}"


def scaling_in_words(model: ModelConfig) -> str:
    if (model.mean, model.std) == (ModelConfig.mean, ModelConfig.std):
        return "(pixel - 127.5) / 127.5"
    return f"(pixel / 255 - mean) / std, mean {list(model.mean)}, std {list(model.std)}"


def with_classes(trained: Trained, classes: tuple[Named, ...]) -> Trained:
    """The same model with other names for its classes."""
    return replace(trained, description=replace(trained.description, classes=classes))
