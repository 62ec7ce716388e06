"""python -m jobs.evaluate RUN|CHECKPOINT --data DATASET: exact accuracy on any number of processes, no DeepSpeed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pipeline import cli
from pipeline.cli import UserError

if TYPE_CHECKING:
    import torch

    from pipeline.config import Resize
    from pipeline.model import VisionTransformer
    from pipeline.split import Split

DESCRIPTION = """Evaluate a run's newest checkpoint (or a named one) on a data set: top-1, top-5 and loss.

Prints a line for people and one JSON object. Examples:

  python -m jobs.evaluate runs/tiny-ft --data shards/digits
  accelerate launch --multi-gpu --num-processes 8 -m jobs.evaluate runs/b16-ft --data shards/in1k
  python -m jobs.evaluate runs/b16-ft/checkpoints/step-00020000 --data shards/in1k --split val --batch 512
  python -m jobs.evaluate runs/b16-ft --data shards/in1k --out work/b16-ft --real real.json
  python -m jobs.evaluate runs/b16 --data shards/in1k --probe linear --shots 10"""


@dataclass(frozen=True)
class EvaluateConfig:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, or a checkpoint's folder in it."""
    data: str
    """Data set, a folder or a URL, made by data_prep.shard with the run's class map."""
    split: str = "val"
    batch: int = 128
    """Samples a process's forward pass."""
    workers: int = 2
    """Loader processes a process."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    average: bool = False
    """Judge the running average of the weights (--train.average) instead of the last ones."""
    out: Path | None = None
    """Folder for per_class.csv and confusion.png."""
    real: Path | None = None
    """ImageNet-ReaL's real.json: also report accuracy by its labels, for ImageNet-2012's validation set."""
    probe: Literal["none", "knn", "linear"] = "none"
    """Judge the frozen features instead of the head, on any classes: nearest neighbours or a linear classifier, fitted
    to the training split of --data. One process."""
    shots: int = 0
    """Training samples a class for the probe; 0: all."""
    train_split: str = "train"
    """The split that the probe is fitted to."""
    seed: int = 0
    """Of the choice of shots."""


def main() -> int:
    config = cli.parse(EvaluateConfig, prog="python -m jobs.evaluate", description=DESCRIPTION)
    import torch  # noqa: PLC0415  (after the command line is known to be good)

    from pipeline import checkpoint  # noqa: PLC0415
    from pipeline.distributed import make_accelerator  # noqa: PLC0415
    from pipeline.evaluate import evaluate  # noqa: PLC0415
    from pipeline.model import VisionTransformer  # noqa: PLC0415
    from pipeline.shards import read_classes  # noqa: PLC0415
    from pipeline.split import open_split  # noqa: PLC0415
    from pipeline.tally import Tally, read_real, write  # noqa: PLC0415

    source = checkpoint.resolve(config.run)
    meta = checkpoint.read_meta(source)
    run, classes, weights = checkpoint.read_model(source, average=config.average)
    split = open_split(config.data, config.split)
    if config.probe == "none" and split.info.classes_digest != meta.classes_digest:
        raise UserError(
            f"--data {config.data!r} has another class map ({split.info.classes} classes, digest "
            f"{split.info.classes_digest}) than the run ({classes}, {meta.classes_digest}): use its classes"
        )
    real = read_real(config.real, split.sample_keys()) if config.real else None
    accelerator = make_accelerator()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    model = VisionTransformer(run.model, classes, loss=run.train.loss)
    model.load_state_dict(weights)
    model = model.eval().to(accelerator.device, dtype)
    facts = {"checkpoint": str(source), "samples": len(split), "step": meta.step}
    facts["processes"] = accelerator.num_processes
    if config.probe != "none":
        if accelerator.num_processes > 1:
            raise UserError(
                f"--probe {config.probe} runs on one process, not {accelerator.num_processes}: start it alone"
            )
        accuracy = probe(config, model, split, accelerator.device, run.data.eval_resize)
        print(f"{source}: {config.probe} probe of {len(split):,} samples, top-1 {accuracy:.2%}")
        print(json.dumps({**facts, "probe": config.probe, "shots": config.shots, "top1": accuracy}))
        return cli.EXIT_DONE

    def reduce(sums: torch.Tensor) -> torch.Tensor:
        return accelerator.reduce(sums, reduction="sum")  # type: ignore[no-any-return]

    tally = Tally(classes, accelerator.device, real) if config.out or real is not None else None
    result = evaluate(
        model,
        split,
        image_size=run.model.image_size,
        batch=config.batch,
        loss=run.train.loss,
        resize=run.data.eval_resize,
        workers=config.workers,
        device=accelerator.device,
        dtype=dtype,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        reduce=reduce,
        observe=tally.see if tally else None,
    )
    more = {}
    if tally is not None:
        tally.reduce(reduce)
        more = tally.real
        if config.out and accelerator.is_main_process:
            names = read_classes(split.folder).select(["wnid", "name"]).to_pylist()
            write(config.out, tally.confusion_CC.cpu().numpy(), names)
            print(f"per class: {config.out / 'per_class.csv'}, {config.out / 'confusion.png'}")
    if accelerator.is_main_process:
        print(f"{source}: {result}" + (f", ReaL {more['real_top1']:.2%}" if more else ""))
        print(json.dumps({**facts, **result.metrics(""), **more}))
    accelerator.end_training()
    return cli.EXIT_DONE


def probe(
    config: EvaluateConfig,
    model: "VisionTransformer",
    split: "Split",
    device: "torch.device",
    resize: "Resize",
) -> float:
    """Top-1 of frozen features on the split."""
    import torch  # noqa: PLC0415

    from pipeline.features import choose_shots, extract, linear_probe, nearest_neighbours  # noqa: PLC0415
    from pipeline.split import open_split  # noqa: PLC0415

    train = open_split(config.data, config.train_split)
    rows = torch.from_numpy(choose_shots(train.label, config.shots, config.seed)).to(device)
    z_ND, z_MD = (
        extract(model, part, batch=config.batch, workers=config.workers, device=device, resize=resize)
        for part in (train, split)
    )
    z_ND = z_ND[rows]
    labels_N = torch.from_numpy(train.label.astype("int64")).to(device)[rows]
    predict = nearest_neighbours if config.probe == "knn" else linear_probe
    predicted_M = predict(z_ND, labels_N, z_MD, split.info.classes)
    return float((predicted_M == torch.from_numpy(split.label.astype("int64")).to(device)).double().mean())


if __name__ == "__main__":
    cli.run(main)
