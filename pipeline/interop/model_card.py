"""README.md of an exported model: usage, results, data, lineage, recipe. Contains no local paths. Pure."""

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from pipeline.config.fields import PATHS
from pipeline.config.schema import ModelConfig
from pipeline.interop.trained_model import AVERAGED, Trained, geometry_in_words, scaling_in_words
from pipeline.loader.eval_geometry import geometry
from pipeline.runs.suite_results import Result

HUB = "hf://"  # of a parent that was downloaded: hf://OWNER/NAME@COMMIT
_PUBLIC = (HUB, "hf-hub:")
_LIBRARY = {"timm": "timm", "huggingface": "transformers", "onnx": "onnx"}  # the Hugging Face hub's names

_USE = {
    "timm": """import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    logits = model(transform(Image.open(IMAGE).convert("RGB"))[None])
print(model.pretrained_cfg["label_names"][int(logits.argmax())])""",
    "huggingface": """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(FOLDER).eval()
processor = AutoImageProcessor.from_pretrained(FOLDER)
with torch.inference_mode():
    logits = model(**processor(Image.open(IMAGE).convert("RGB"), return_tensors="pt")).logits
print(model.config.id2label[int(logits.argmax())])""",
    "npz": """import numpy as np

weights = np.load(f"{FOLDER}/model.npz")  # google-research/vision_transformer's layout
print(weights["head/kernel"].shape)""",
    "safetensors": """from safetensors.torch import load_file

weights = load_file(f"{FOLDER}/model.safetensors")  # timm's names; model.json has the configuration
print(weights["head.weight"].shape)""",
    "onnx": """import json
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image

facts = json.loads(Path(f"{FOLDER}/model.json").read_text())
image = Image.open(IMAGE).convert("RGB")
CROP
image = image.resize((SIZE, SIZE), Image.Resampling.FILTER)
images = SCALED
session = onnxruntime.InferenceSession(f"{FOLDER}/model.onnx")
(logits,) = session.run(["logits"], {"images": images})
print(facts["classes"][int(logits.argmax())]["name"])""",
    "torch": """import torch

model = torch.export.load(f"{FOLDER}/model.pt2").module()
with torch.inference_mode():
    print(model(torch.zeros(1, 3, SIZE, SIZE)).argmax())  # images as above instead of zeros""",
}
_CROP = """side = round(min(image.size) * SHARE)
left, top = (image.width - side) // 2, (image.height - side) // 2
image = image.crop((left, top, left + side, top + side))
"""


# the hub's dataset names for model-index; other sets keep their own name
_DATASETS = {
    "val": "imagenet-1k", "real": "imagenet-real", "v2": "imagenet-v2-matched-frequency",
    "v2-threshold": "imagenet-v2-threshold0.7", "v2-top": "imagenet-v2-top-images", "a": "imagenet-a",
    "r": "imagenet-r", "sketch": "imagenet_sketch", "c": "imagenet-c",
}  # fmt: skip


def card(model: Trained, form: str, suite: Sequence[Result] = (), *, license: str = "") -> str:  # noqa: A002
    """The card's Markdown. ``suite``: results of vit suite with these weights. ``license``: an id of the Hub."""
    known = model.description
    size = known.model.image_size
    title = f"ViT {known.model.variant}, {len(known.classes):,} classes"
    probabilities = (
        "a softmax of the logits"
        if known.loss == "softmax"
        else "a sigmoid of each logit (the model was trained with one binary decision per class)"
    )
    # runs with a running average have metrics of both weights: those of the exported weights come first
    names = sorted(model.metrics, key=lambda name: (name.startswith(AVERAGED) != model.average, name))
    results = "".join(f"- {name}: {model.metrics[name]:.4f}\n" for name in names)
    lineage = _named(model.parent, ("run_dir", "weights"))
    weights = "These are the running average of the run's weights (`train.average`), not the last step's weights."
    parts = [
        f"---\n{front_matter(title, form, suite, license=license, parent=model.parent)}---",
        f"# {title}",
        f"Images: {geometry_in_words(known.resize, size)}, then {scaling_in_words(known.model)}. Probabilities are "
        f"{probabilities}." + (f" {weights}" if model.average else ""),
        f"## Use\n\n```python\n{use(form, known.model, known.resize)}\n```",
    ]
    if model.config:
        parts += [
            f"## Results\n\n{results or 'The checkpoint was not evaluated at its step.'}".rstrip(),
            *([f"## Test sets\n\n{_table(suite)}"] if suite else []),
            f"## Data\n\nDigest of the training set: `{model.dataset_digest}`",
            f"## Lineage\n\n{model.step} steps from "
            + (f"these weights:\n\n```json\n{_json(lineage)}\n```" if model.parent else "random weights."),
            f"## Recipe\n\n```json\n{_json(_named(model.config, PATHS))}\n```",
        ]
    return "\n\n".join(parts) + "\n"


def front_matter(
    title: str,
    form: str,
    suite: Sequence[Result],
    *,
    license: str = "",  # noqa: A002
    parent: Mapping[str, Any] | None = None,
) -> str:
    """The card's YAML for the Hugging Face hub: library, task, licence, the model there that it was fine-tuned from,
    and in ``model-index`` each result on a complete set."""
    content: dict[str, Any] = {"library_name": _LIBRARY[form]} if form in _LIBRARY else {}
    if license:
        content["license"] = license
    if (base := str((parent or {}).get("weights", ""))).startswith(HUB):
        content |= {"base_model": base.removeprefix(HUB).partition("@")[0], "base_model_relation": "finetune"}
    content |= {"pipeline_tag": "image-classification", "tags": ["vision-transformer"]}
    results = [
        {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {"name": result.title, "type": _DATASETS.get(result.name, result.name)},
            "metrics": [
                {"type": "accuracy", "name": words, "value": result.scores[score]}
                for score, words in (("top1", "Top-1 accuracy"), ("top5", "Top-5 accuracy"))
                if score in result.scores
            ],
        }
        for result in suite
        if not result.partial
    ]
    if results:
        content["model-index"] = [{"name": title, "results": results}]
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _table(suite: Sequence[Result]) -> str:
    lines = ["| set | images | top-1 | top-5 |", "|---|---|---|---|"]
    for result in suite:
        scores = result.scores
        title = result.title.replace("|", "\\|") + (" (partial)" if result.partial else "")
        top1 = f"{scores['top1']:.2%}"
        top1 += (
            f" ± {scores['std']:.2%}" if "std" in scores else f", mCE {scores['mce']:.1%}" if "mce" in scores else ""
        )
        top5 = f"{scores['top5']:.2%}" if "top5" in scores else ""
        lines.append(f"| {title} | {scores['samples']:,.0f} | {top1} | {top5} |")
    return "\n".join(lines)


def use(form: str, model: ModelConfig, resize: str) -> str:
    """Python code that loads and runs an export; the reader fills in FOLDER and IMAGE."""
    how = geometry(resize)
    crop = "" if how.crop is None else _CROP.replace("SHARE", f"{how.crop:g}")
    pixels = "np.asarray(image, np.float32)"
    if (model.mean, model.std) == (ModelConfig.mean, ModelConfig.std):
        scaled = f"({pixels}.transpose(2, 0, 1)[None] - 127.5) / 127.5"
    else:
        mean, std = (f"np.float32({list(values)})" for values in (model.mean, model.std))
        scaled = f"(({pixels} / 255 - {mean}) / {std}).transpose(2, 0, 1)[None]"
    code = _USE[form].replace("SIZE", str(model.image_size)).replace("FILTER", how.interpolation.upper())
    return code.replace("CROP\n", crop).replace("SCALED", scaled)


def _json(content: Any) -> str:
    return json.dumps(content, indent=1)


def _named(tree: Mapping[str, Any], fields: Container[str], prefix: str = "") -> dict[str, Any]:
    """``tree`` with paths in the named fields shortened to their last part; names on the Hub are no paths."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        field = prefix + key
        if isinstance(value, Mapping):
            result[key] = _named(value, fields, f"{field}.")
        elif field in fields and value and not str(value).startswith(_PUBLIC):
            result[key] = [PurePath(part).name for part in value] if isinstance(value, list) else PurePath(value).name
        else:
            result[key] = value
    return result
