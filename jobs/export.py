"""python -m jobs.export MODEL OUTPUT --format ...: a trained model in the form that others load."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import check_local, naming, put_in_place, temporary

if TYPE_CHECKING:
    from pipeline.interop.trained_model import Trained
    from pipeline.runs.suite_results import Result

DESCRIPTION = """Write a model as a folder for timm, transformers, Flax, safetensors, ONNX or torch.export.

What was written is read back and must give the model's logits before OUTPUT appears. Examples:

  python -m jobs.export work/runs/finetune-l16 l16-timm --format timm
  python -m jobs.export work/runs/finetune-l16/checkpoints/step-00020000 l16-onnx --format onnx
  python -m jobs.export B_16.npz b16-transformers --format huggingface"""

# Largest difference of a float32 logit, as a part of the largest logit where that is above one: the rounding of other
# kernels grows with it.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExportConfig:
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder, a checkpoint's folder in it, an official .npz, a timm or transformers folder."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to make; it must not exist."""
    format: Literal["timm", "huggingface", "npz", "safetensors", "onnx", "torch"] = "timm"
    """timm and transformers folders; npz: the published layout, for Flax; safetensors: our names; onnx and torch
    (torch.export): a graph of any batch size. The last four as OUTPUT/model.npz, .safetensors, .onnx, .pt2."""
    average: bool = False
    """Export the running average of the weights."""


def main() -> int:
    config = cli.parse(ExportConfig, prog="python -m jobs.export", description=DESCRIPTION)
    check_local(config.output, "OUTPUT")
    if config.output.exists() or config.output.is_symlink():
        raise UserError(f"OUTPUT {str(config.output)!r} exists: name a folder that doesn't")
    aside = temporary(config.output)
    try:
        aside.mkdir(parents=True)
        facts = write(config, aside)
        put_in_place(aside, config.output)
    except OSError as error:
        raise UserError(f"OUTPUT {str(config.output)!r} can't be written ({error}): name another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(
        f"{config.output}: {config.format}; logits differ by {facts['largest_difference']:.1g} at most, of logits up "
        f"to {facts['largest_logit']:.1f}; images are resized as in evaluation ({facts['resize']})"
    )
    print(json.dumps({"output": str(config.output), "format": config.format, **facts}))
    return errors.EXIT_DONE


def write(config: ExportConfig, folder: Path) -> dict[str, float | str]:
    """Write the model and its card; what was checked. Raises UserError above TOLERANCE."""
    from pipeline.interop import export as exporting
    from pipeline.interop import trained_model
    from pipeline.interop.model_card import card

    model = trained_model.load(config.model, average=config.average)
    known = model.description
    with naming(folder):
        exporting.write(folder, config.format, model)
    again = exporting.read_back(folder, config.format, known)
    difference, logit = exporting.difference(exporting.build(model), again, known.model.image_size)
    if not difference <= TOLERANCE * max(1.0, logit):
        raise UserError(
            f"--format {config.format} gives logits that differ by {difference:.2g}, of logits up to {logit:.2g} (at "
            f"most {TOLERANCE} of it): it can't hold model.gelu {known.model.gelu!r} or model.norm_eps "
            f"{known.model.norm_eps}; choose another format, such as safetensors"
        )
    (folder / "README.md").write_text(card(model, config.format, suite_of(config.model, model)), encoding="utf-8")
    return {"largest_difference": difference, "largest_logit": logit, "resize": known.resize}


def suite_of(path: Path, model: "Trained") -> "list[Result]":
    """The results that jobs.suite kept with the run for these very weights; none for another source."""
    from pipeline.checkpoint import format as checkpoint
    from pipeline.interop.trained_model import is_run_or_checkpoint
    from pipeline.runs.folder import EVALUATIONS
    from pipeline.runs.suite_results import read_all

    if not is_run_or_checkpoint(path):
        return []
    found = read_all(checkpoint.find(path).path.parent.parent / EVALUATIONS)
    return [result for result in found if (result.step, result.average) == (model.step, model.average)]


if __name__ == "__main__":
    cli.run(main)
