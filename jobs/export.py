"""python -m jobs.export MODEL OUTPUT --format ...: a trained model in the form that others load."""

import dataclasses
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import check_local, naming, put_in_place, temporary
from pipeline.core.needs import Need
from pipeline.interop import hub_models, hub_push
from pipeline.interop.model_files import check_model

if TYPE_CHECKING:
    from pipeline.interop.trained_model import Trained
    from pipeline.runs.suite_results import Result

logger = logging.getLogger("jobs.export")

DESCRIPTION = """Export a model as a folder for timm, transformers, Flax, safetensors, ONNX or torch.export.

The export is read back and must give the model's logits before OUTPUT appears. Examples:

  python -m jobs.export work/runs/finetune-l16 l16-timm --format timm
  python -m jobs.export work/runs/finetune-l16/checkpoints/step-00020000 l16-onnx --format onnx
  python -m jobs.export B_16.npz b16-transformers --format huggingface
  python -m jobs.export hf://timm/vit_base_patch16_384.augreg_in21k_ft_in1k b16-onnx --format onnx
  python -m jobs.export work/runs/birds birds --push me/vit-b16-birds --license cc-by-nc-4.0"""

# Largest difference of a float32 logit, relative to the largest logit if that is above 1: rounding differences between
# kernels grow with it.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class ExportConfig:
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder, a checkpoint's folder in it, an official .npz, a timm or transformers folder, or
    hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to create; it must not exist."""
    format: Literal["timm", "huggingface", "npz", "safetensors", "onnx", "torch"] = "timm"
    """timm, huggingface: a folder for timm or transformers. npz: the published layout, for Flax. safetensors: weights
    under this project's (timm's) names. onnx, torch (torch.export): a graph for any batch size. The last four write
    OUTPUT/model.npz, .safetensors, .onnx and .pt2."""
    average: bool = False
    """Export the running average of the weights (--train.average) instead of the last weights."""
    push: str = ""
    """Also upload OUTPUT to the Hugging Face Hub, as the model OWNER/NAME: timm and huggingface only. Needs a login
    with write access (hf auth login, or HF_TOKEN)."""
    private: bool = False
    """With --push: make the new repository private."""
    license: str = ""
    """Licence of the model card, as the Hub names it: apache-2.0, mit, cc-by-nc-4.0, other. Default: the card names
    none."""


NEEDS = {"private": Need(lambda options: bool(options.push), "without --push", "add --push OWNER/NAME")}


def main() -> int:
    config = cli.parse(ExportConfig, prog="python -m jobs.export", description=DESCRIPTION, needs=NEEDS)
    check_local(config.output, "OUTPUT")
    if config.output.exists() or config.output.is_symlink():
        raise UserError(f"OUTPUT {str(config.output)!r} exists: name a folder that doesn't")
    check(config)
    target = hub_push.check(config.push, config.format, private=config.private) if config.push else None
    config = dataclasses.replace(config, model=hub_models.resolved(config.model))
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
        f"{config.output}: {config.format}; logits (up to {facts['largest_logit']:.1f}) differ by at most "
        f"{facts['largest_difference']:.1g}; images are resized as in evaluation ({facts['resize']})"
    )
    if target is not None:
        facts["pushed"] = pushed(config, target)
    print(json.dumps({"output": str(config.output), "format": config.format, **facts}))
    return errors.EXIT_DONE


def check(config: ExportConfig) -> None:
    """Check the options before anything slow is imported. Raises UserError."""
    check_model(config.model)
    if config.license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", config.license):
        raise UserError(
            f"--license {config.license!r} is not one of the Hub's names: write apache-2.0, mit, cc-by-nc-4.0 or "
            "another of its list"
        )


def pushed(config: ExportConfig, target: "hub_push.Target") -> str:
    """Upload the finished export; the commit's URL. Raises UserError, and says how to upload OUTPUT later."""
    if not config.license:
        logger.warning("the model card names no licence: say what others may do with the model by --license")
    try:
        return hub_push.push(config.output, target, f"Upload {config.output.name} ({config.format})")
    except UserError as error:
        raise UserError(
            f"{error}; {str(config.output)!r} is complete: upload it later with "
            f"'hf upload {config.push} {config.output}'"
        ) from error


def write(config: ExportConfig, folder: Path) -> dict[str, float | str]:
    """Write the model and its card; return what was checked. Raises UserError if logits differ by over TOLERANCE."""
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
            f"--format {config.format} gives logits that differ by {difference:.2g} (allowed: {TOLERANCE} of the "
            f"largest, {logit:.2g}): it can't hold model.gelu {known.model.gelu!r} or model.norm_eps "
            f"{known.model.norm_eps}; choose another format, such as safetensors"
        )
    (folder / "README.md").write_text(
        card(model, config.format, suite_of(config.model, model), license=config.license), encoding="utf-8"
    )
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
