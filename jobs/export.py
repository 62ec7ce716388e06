"""python -m jobs.export RUN OUTPUT --format timm|huggingface|npz: a trained model in the form that others load."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pipeline import cli
from pipeline.cli import UserError

DESCRIPTION = """Write a run's newest checkpoint, or a named one, as a folder for timm, transformers or Flax.

The files are read back and must give the checkpoint's logits before OUTPUT appears. Examples:

  python -m jobs.export work/runs/finetune-l16 l16-timm --format timm
  python -m jobs.export work/runs/finetune-l16 l16-transformers --format huggingface
  python -m jobs.export work/runs/finetune-l16/checkpoints/step-00020000 l16-npz --format npz"""

TOLERANCE = 1e-5  # largest difference of a float32 logit


@dataclass(frozen=True)
class ExportConfig:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, or a checkpoint's folder in it."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder to make; it must not exist."""
    format: Literal["timm", "huggingface", "npz"] = "timm"
    """timm and transformers folders, or the published .npz (OUTPUT/model.npz)."""
    average: bool = False
    """Export the running average of the weights."""


def main() -> int:
    config = cli.parse(ExportConfig, prog="python -m jobs.export", description=DESCRIPTION)
    if config.output.exists() or config.output.is_symlink():
        raise UserError(f"OUTPUT {str(config.output)!r} exists: name a folder that doesn't")
    aside = config.output.with_name(f".{config.output.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of an export that was killed
        aside.mkdir(parents=True)
        difference = write(config, aside)
        aside.replace(config.output)
    except OSError as error:
        raise UserError(f"OUTPUT {str(config.output)!r} can't be written ({error}): name another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(json.dumps({"output": str(config.output), "format": config.format, "largest_difference": difference}))
    return cli.EXIT_DONE


def write(config: ExportConfig, folder: Path) -> float:
    """Write the model and its card; the largest difference of a logit. Raises UserError above TOLERANCE."""
    from pipeline import checkpoint  # noqa: PLC0415 - torch, which --help does without
    from pipeline.files import write_json  # noqa: PLC0415
    from pipeline.interop import huggingface, load_weights, npz, timm  # noqa: PLC0415

    source = checkpoint.resolve(config.run)
    run, _, state = checkpoint.read_model(source, average=config.average)
    classes = _read(source.parent.parent / "classes.json")
    names = [entry["name"] for entry in classes]
    if config.format == "timm":
        timm.write(folder, run.model, state, [entry["wnid"] for entry in classes], descriptions=names)
    elif config.format == "huggingface":
        huggingface.write(folder, run.model, state, names)
    else:
        npz.write(folder / "model.npz", run.model, state)
    write_json(folder / "classes.json", classes)
    architecture, again, _ = load_weights(folder / "model.npz" if config.format == "npz" else folder)
    difference = _difference((run.model, state), (architecture, again), len(classes))
    if not difference <= TOLERANCE:
        raise UserError(
            f"--format {config.format} gives logits that differ by {difference:.2g} (at most {TOLERANCE}): it can't "
            f"hold model.gelu {run.model.gelu!r} or model.norm_eps {run.model.norm_eps}; choose another format"
        )
    meta = checkpoint.read_meta(source)
    facts = _read(source.parent.parent / "run.json")
    (folder / "README.md").write_text(card(meta.config, meta.step, meta.dataset_digest, meta.metrics, facts))
    return difference


def _difference(ours: tuple[Any, Any], theirs: tuple[Any, Any], classes: int) -> float:
    import torch  # noqa: PLC0415

    from pipeline.model import VisionTransformer  # noqa: PLC0415

    size = ours[0].image_size
    x_BCHW = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits = []
    for config, state in (ours, theirs):
        model = VisionTransformer(config, classes).eval()
        model.load_state_dict(state)
        with torch.inference_mode():
            logits.append(model(x_BCHW))
    return float((logits[0] - logits[1]).abs().max())


def card(
    config: Mapping[str, Any], step: int, digest: str, metrics: Mapping[str, float], facts: Mapping[str, Any]
) -> str:
    """README.md of an export: results, data, lineage, recipe."""
    results = "".join(f"- {name}: {value:.4f}\n" for name, value in sorted(metrics.items()))
    lineage = json.dumps(facts.get("parent") or {}, indent=1)
    return (
        f"# ViT {config['model']['variant']}\n\nAfter {step} steps. Images are resized to "
        f"{config['model']['image_size']} x {config['model']['image_size']} and scaled to -1 ... 1.\n\n"
        f"## Results\n\n{results or 'The checkpoint was not evaluated at its step.'}\n\n"
        f"## Data\n\nDigest of the training set: `{digest}`\n\n## Lineage\n\n```json\n{lineage}\n```\n\n"
        f"## Recipe\n\n```json\n{json.dumps(config, indent=1)}\n```\n"
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} can't be read ({error}): name a run folder as training left it") from error


if __name__ == "__main__":
    cli.run(main)
