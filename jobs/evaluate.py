"""python -m jobs.evaluate MODEL --data DATASET: exact accuracy on any number of processes, no DeepSpeed."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipeline.core import cli, errors, log
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make, check_local
from pipeline.runs import evaluations
from pipeline.runs.evaluations import FOLDER, name_of, run_of
from pipeline.tracking.resend import send

logger = logging.getLogger("jobs.evaluate")

if TYPE_CHECKING:
    import torch

    from pipeline.dataset.joined_split import JoinedSplit
    from pipeline.interop.trained_model import Named
    from pipeline.model.vit import VisionTransformer

DESCRIPTION = """Evaluate a model on a data set: top-1, top-5 and loss, each image once on any number of processes.

MODEL is a run (its newest checkpoint), a checkpoint, published weights, or anything that jobs.export wrote. Prints a
line for people and one JSON object. Examples:

  python -m jobs.evaluate runs/tiny-ft --data shards/digits
  accelerate launch --multi-gpu --num-processes 8 -m jobs.evaluate runs/b16-ft --data shards/in1k
  python -m jobs.evaluate runs/b16-ft/checkpoints/step-00020000 --data shards/in1k --split val --batch 512
  python -m jobs.evaluate b16-onnx --data shards/in1k
  python -m jobs.evaluate runs/b16-ft --data shards/in1k --out work/b16-ft --real real.json
  python -m jobs.evaluate runs/b16-ft --data shards/imagenet-v2 --split test --log
  python -m jobs.evaluate runs/b16 --data shards/in1k --probe linear --shots 10"""


@dataclass(frozen=True)
class EvaluateConfig:
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder, a checkpoint's folder in it, an official .npz, a timm or transformers folder, an export of any
    format."""
    data: str
    """Data set, a folder or a URL, made by data_prep.shard with the model's class map."""
    split: str = "val"
    batch: int = 128
    """Samples a process's forward pass."""
    workers: int = 2
    """Loader processes a process."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    average: bool = False
    """Judge the running average of the weights (--train.average) instead of the last ones."""
    trust_code: bool = False
    """Load a MODEL that is a torch.export archive (.pt2). Such a file can run any code: only for files you trust."""
    out: Path | None = None
    """Folder for per_class.csv and the confusion plot."""
    format: Literal["png", "svg", "pdf"] = "png"
    """File format of the confusion plot."""
    log: bool = False
    """Keep the result, the per-class table and the confusion plot with the run, in RUN/evaluations/, and send them to
    its run in MLflow."""
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
    check(config)
    import torch  # after the command line is known to be good

    from pipeline.checkpoint import format as checkpoint
    from pipeline.dataset.format import read_classes
    from pipeline.dataset.joined_split import open_split
    from pipeline.distributed.process_group import make_accelerator
    from pipeline.evaluation.accuracy import evaluate
    from pipeline.evaluation.confusion import MOST_CLASSES, Tally, read_real, write
    from pipeline.inference.classifier import open_classifier
    from pipeline.interop.trained_model import is_run

    split = open_split(config.data, config.split)
    real = read_real(config.real, split.sample_keys()) if config.real else None
    if real is not None:
        check_real(config, read_classes(split.folder)["wnid"].to_pylist())
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        log.set_up(accelerator.process_index, accelerator.num_processes, stamped=True)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    source = checkpoint.resolve(config.model) if is_run(config.model) else config.model
    run_dir = run_of(source) if config.log else None
    if run_dir is not None:
        check_can_make(run_dir / FOLDER, "--log's")
    classifier = open_classifier(
        source, device=accelerator.device, dtype=dtype, average=config.average, trust_code=config.trust_code
    )
    known = classifier.known
    facts = {"checkpoint": str(source), "samples": len(split), "processes": accelerator.num_processes}
    if is_run(source):
        facts["step"] = checkpoint.read_meta(source).step
    if config.probe == "none":
        check_classes(config, known.classes, read_classes(split.folder).to_pylist())
    else:
        if accelerator.num_processes > 1:
            raise UserError(
                f"--probe {config.probe} runs on one process, not {accelerator.num_processes}: start it alone"
            )
        if classifier.model is None:
            raise UserError(
                f"--probe needs the weights, and MODEL {str(source)!r} is a graph: name the run or another export"
            )
        accuracy = probe(config, classifier.model, split, classifier.device, known.resize)
        print(f"{source}: {config.probe} probe of {len(split):,} samples, top-1 {accuracy:.2%}")
        print(json.dumps({**facts, "probe": config.probe, "shots": config.shots, "top1": accuracy}))
        if run_dir is not None:
            shots = f"-{config.shots}-shot" if config.shots else ""
            keep(run_dir, f"{result_name(config, split)}-{config.probe}{shots}", facts, {"top1": accuracy})
        return errors.EXIT_DONE

    def reduce(sums: torch.Tensor) -> torch.Tensor:
        return accelerator.reduce(sums.to(accelerator.device), reduction="sum")  # type: ignore[no-any-return]

    tables = config.out or (config.log and len(known.classes) <= MOST_CLASSES)
    tally = Tally(len(known.classes), classifier.device, real) if tables or real is not None else None
    result = evaluate(
        classifier.forward,
        split,
        model=known.model,
        batch=config.batch,
        loss=known.loss,
        resize=known.resize,
        workers=config.workers,
        device=classifier.device,
        dtype=dtype,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        reduce=reduce,
        observe=tally.see if tally else None,
    )
    if tally is not None:
        tally.reduce(reduce)
    if accelerator.is_main_process:
        scores = {**result.metrics(""), **(tally.real if tally is not None else {})}
        folders = [config.out] if config.out else []
        if run_dir is not None:
            folders.append(run_dir / FOLDER / result_name(config, split))
        # the numbers first: whatever happens to the tables and pictures, the evaluation was not for nothing
        try:
            if run_dir is not None:
                evaluations.keep(run_dir, result_name(config, split), facts["step"], facts, scores)
        finally:  # also where the disk is full by now
            print(f"{source}: {result}" + (f", ReaL {scores['real_top1']:.2%}" if "real_top1" in scores else ""))
            finite = {name: score if math.isfinite(score) else None for name, score in scores.items()}
            print(json.dumps({**facts, **finite}), flush=True)  # JSON has no NaN
        if tally is not None and tables:
            names = read_classes(split.folder).select(["wnid", "name"]).to_pylist()
            for folder in folders:
                write(folder, tally.confusion_CC.cpu().numpy(), names, config.format)
                plot = folder / f"confusion.{config.format}"
                logger.info("per class: %s, %s", folder / "per_class.csv", plot)
        if run_dir is not None:
            send(run_dir)
    accelerator.end_training()
    return errors.EXIT_DONE


def check(config: EvaluateConfig) -> None:
    """Raises UserError before anything slow is imported."""
    check_local(config.model, "MODEL")
    if not config.model.exists():
        raise UserError(f"MODEL {str(config.model)!r} does not exist: name a run folder, weights or an export (--help)")
    for name, least in (("batch", 1), ("workers", 0), ("shots", 0), ("seed", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)} is too small: give at least {least}")
    alone = EvaluateConfig(config.model, config.data)
    unused = ("shots", "train_split", "seed") if config.probe == "none" else ("out", "real", "format")
    for name in unused:
        if getattr(config, name) != getattr(alone, name):
            remedy = "name --probe knn or linear" if config.probe == "none" else f"leave out --probe {config.probe}"
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(config, name)} has no effect with --probe {config.probe}: "
                f"{remedy}, or leave it out"
            )
    if config.probe != "none" and config.train_split == config.split:
        raise UserError(
            f"--train-split {config.train_split!r} is --split as well, so that the probe would be asked what it was "
            "shown: name two splits"
        )
    if config.format != alone.format and config.out is None and not config.log:
        raise UserError(f"--format {config.format} has no effect without a plot: add --out FOLDER or --log")
    if config.out is not None and config.out.exists() and not config.out.is_dir():
        raise UserError(f"--out {str(config.out)!r} is a file: name a folder")
    if config.out is not None:
        check_can_make(config.out, "--out")


def result_name(config: EvaluateConfig, split: "JoinedSplit") -> str:
    """What the result is kept under in the run's folder and in MLflow."""
    return name_of(split.info.name, config.split, average=config.average)


def keep(run_dir: Path, name: str, facts: dict[str, Any], scores: dict[str, float]) -> None:
    """Write the scores into the run's folder and send them to MLflow."""
    evaluations.keep(run_dir, name, facts["step"], facts, scores)
    send(run_dir)


def check_classes(config: EvaluateConfig, classes: "Sequence[Named]", data: list[dict[str, Any]]) -> None:
    """Raises UserError where the data set's classes are others than the model's, or in another order."""
    wnids, names = [entry["wnid"] for entry in data], [entry["name"] for entry in data]
    if len(classes) == len(data) and not any(entry.wnid for entry in classes):
        logger.warning(
            "MODEL %r does not name its classes: taken to be those of --data, in order",
            str(config.model),
            extra=log.ONCE,
        )
        return
    if [entry.wnid for entry in classes] in (wnids, names):  # transformers' folders have nothing but names
        return
    first = next((row for row, entry in enumerate(classes[: len(data)]) if entry.wnid != wnids[row]), len(data))
    difference = f", class {first} is {wnids[first]!r}, not {classes[first].wnid!r}" if first < len(data) else ""
    raise UserError(
        f"--data {config.data!r} has another class map ({len(data)} classes{difference}) than MODEL "
        f"{str(config.model)!r} ({len(classes)} classes): shard it with --classes of the training data set"
    )


def check_real(config: EvaluateConfig, wnids: list[str]) -> None:
    """Raises UserError where the class numbers aren't those of real.json's labels."""
    from pipeline.dataset.class_lists import listed  # pyarrow

    if wnids != listed("imagenet1k"):
        raise UserError(
            f"--real gives labels of ImageNet-2012's 1,000 classes, and --data {config.data!r} has {len(wnids)}, or "
            "another order: shard it with --classes imagenet1k"
        )


def probe(
    config: EvaluateConfig,
    model: "VisionTransformer",
    split: "JoinedSplit",
    device: "torch.device",
    resize: str,
) -> float:
    """Top-1 of frozen features on the split."""
    import torch

    from pipeline.dataset.joined_split import open_split
    from pipeline.evaluation.feature_probes import choose_shots, extract, linear_probe, nearest_neighbours

    train = open_split(config.data, config.train_split)
    rows = torch.from_numpy(choose_shots(train.label, config.shots, config.seed)).to(device)
    z_ND, z_MD = (
        extract(model, part, batch=config.batch, workers=config.workers, device=device, resize=resize)
        for part in (train, split)
    )
    z_ND = z_ND[rows]
    labels_N = torch.from_numpy(train.label.astype("int64")).to(device)[rows]
    if not (z_ND.isfinite().all() and z_MD.isfinite().all()):
        raise UserError(f"MODEL {str(config.model)!r} gives features that are no numbers: its training has diverged")
    if len(set(labels_N.tolist())) < 2:
        raise UserError(f"--probe {config.probe} tells classes apart, and --data {config.data!r} has one")
    predict = nearest_neighbours if config.probe == "knn" else linear_probe
    predicted_M = predict(z_ND, labels_N, z_MD, split.info.classes)
    return float((predicted_M == torch.from_numpy(split.label.astype("int64")).to(device)).double().mean())


if __name__ == "__main__":
    cli.run(main)
