"""python -m jobs.evaluate MODEL --data DATASET: exact accuracy on any number of processes, no DeepSpeed."""

import dataclasses
import json
import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipeline.core import arguments, cli, errors, log
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make
from pipeline.core.needs import Need
from pipeline.interop import hub_models
from pipeline.interop.model_files import ARCHIVE, check_model
from pipeline.runs import evaluations
from pipeline.runs.evaluations import name_of, run_of
from pipeline.runs.folder import EVALUATIONS
from pipeline.tracking.resend import send

logger = logging.getLogger("jobs.evaluate")

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.dataset.joined_split import JoinedSplit
    from pipeline.evaluation.accuracy import Result
    from pipeline.evaluation.confusion import Tally
    from pipeline.inference.classifier import Classifier

DESCRIPTION = """Evaluate a model on a dataset: top-1, top-5 and loss, each image once on any number of processes.

MODEL is a run (its newest checkpoint), a checkpoint, published weights, or anything that jobs.export wrote. Prints a
line of text and one JSON object. Examples:

  python -m jobs.evaluate runs/tiny-ft --data shards/digits
  python -m jobs.launch --ranks 8 evaluate runs/b16-ft --data shards/in1k
  python -m jobs.evaluate runs/b16-ft/checkpoints/step-00020000 --data shards/in1k --split val --batch 512
  python -m jobs.evaluate b16-onnx --data shards/in1k
  python -m jobs.evaluate runs/b16-ft --data shards/in1k --out work/b16-ft --real real.json
  python -m jobs.evaluate runs/b16-ft --data shards/imagenet-v2 --split test --log
  python -m jobs.evaluate runs/b16 --data shards/in1k --probe linear --shots 10"""


@dataclass(frozen=True)
class EvaluateConfig:
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder, a checkpoint's folder in it, an official .npz, a timm or transformers folder, an export of any
    format, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    data: str
    """Dataset, a folder or a URL, made by data_prep.shard with the model's class map."""
    split: str = "val"
    """Split to evaluate."""
    batch: int = 128
    """Samples per forward pass on each process."""
    workers: int = 2
    """Data loader workers per process."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    average: bool = False
    """Evaluate the running average of the weights (--train.average) instead of the last weights."""
    trust_code: bool = False
    """Load a MODEL that is a torch.export archive (.pt2). Such a file can run any code: only for files you trust."""
    out: Path | None = None
    """Folder for per_class.csv and the confusion plot."""
    format: Literal["png", "svg", "pdf"] = "png"
    """File format of the confusion plot."""
    log: bool = False
    """Store the result, the per-class table and the confusion plot in RUN/evaluations/, and send them to the run in
    MLflow."""
    real: Path | None = None
    """ImageNet-ReaL's real.json: also report accuracy by its labels (for ImageNet-2012's validation set)."""
    probe: Literal["none", "knn", "linear"] = "none"
    """Evaluate the frozen features instead of the head, on any classes: nearest neighbours or a linear classifier,
    fitted to the training split of --data. Runs on one process."""
    shots: int = 0
    """Training samples per class for the probe. 0: all."""
    train_split: str = "train"
    """Split that the probe is fitted to."""
    seed: int = 0
    """Seed of the choice of the shots."""


HEAD = Need(
    lambda options: options.probe == "none", "with --probe, which does not use the model's head", "leave out --probe"
)
PROBE = Need(lambda options: options.probe != "none", "without a probe", "add --probe knn or linear")
NEEDS = {
    "trust_code": ARCHIVE,
    "out": HEAD,
    "real": HEAD,
    "format": Need(
        lambda options: options.probe == "none" and (options.out is not None or options.log),
        "without a confusion plot",
        "add --out FOLDER or --log (and no --probe)",
    ),
    "shots": PROBE,
    "train_split": PROBE,
    "seed": Need(
        lambda options: options.probe != "none" and options.shots > 0,
        "unless a probe is fitted to some samples of each class",
        "add --probe knn or linear and --shots N",
    ),
}


def main() -> int:
    config = cli.parse(EvaluateConfig, prog="python -m jobs.evaluate", description=DESCRIPTION, needs=NEEDS)
    check(config)
    config = dataclasses.replace(config, model=hub_models.resolved(config.model))
    task = open_task(config)
    if config.probe == "none":
        judge_head(config, task)
    else:
        judge_features(config, task)
    return errors.EXIT_DONE


@dataclass(frozen=True)
class Task:
    """The opened dataset, model and processes of an evaluation; one per process."""

    accelerator: "Accelerator"
    classifier: "Classifier"
    split: "JoinedSplit"
    classes: list[dict[str, str]]  # wnid and name of the dataset's
    real: dict[int, frozenset[int]] | None  # labels of ImageNet-ReaL, by --real
    facts: dict[str, Any]  # stored with the result
    run_dir: Path | None  # of --log


def open_task(config: EvaluateConfig) -> Task:
    """Open the dataset, join the other processes, load the model. Raises UserError if they don't fit together."""
    # torch comes with these: after the command line is known to be good
    from pipeline.checkpoint import format as checkpoint
    from pipeline.dataset.format import read_classes
    from pipeline.dataset.joined_split import open_split
    from pipeline.distributed.process_group import make_accelerator
    from pipeline.evaluation.class_maps import check_classes, check_real
    from pipeline.evaluation.confusion import read_real
    from pipeline.inference.classifier import open_classifier
    from pipeline.interop.trained_model import is_run_or_checkpoint
    from pipeline.model.preprocess import DTYPES

    split = open_split(config.data, config.split)
    classes = read_classes(split.folder).select(["wnid", "name"]).to_pylist()
    real = read_real(config.real, split.sample_keys()) if config.real else None
    if real is not None:
        check_real(config.data, [entry["wnid"] for entry in classes])
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        log.set_up(accelerator.process_index, accelerator.num_processes, stamped=True)
    source = checkpoint.find(config.model).path if is_run_or_checkpoint(config.model) else config.model
    run_dir = run_of(source) if config.log else None
    if run_dir is not None:
        check_can_make(run_dir / EVALUATIONS, "--log's")
    classifier = open_classifier(
        source,
        device=accelerator.device,
        dtype=DTYPES[config.dtype],
        average=config.average,
        trust_code=config.trust_code,
    )
    facts = {"checkpoint": str(source), "samples": len(split), "processes": accelerator.num_processes}
    if is_run_or_checkpoint(source):
        facts["step"] = checkpoint.read_meta(source).step
    if config.probe == "none":
        check_classes(config.model, classifier.known.classes, config.data, classes)
    elif accelerator.num_processes > 1:
        raise UserError(f"--probe {config.probe} runs on one process, not {accelerator.num_processes}: start one only")
    elif classifier.model is None:
        raise UserError(
            f"--probe needs the weights, and MODEL {str(source)!r} is a graph: name the run or another export"
        )
    return Task(accelerator, classifier, split, classes, real, facts, run_dir)


def judge_features(config: EvaluateConfig, task: Task) -> None:
    """Evaluate a probe on the frozen features (--probe); one process."""
    from pipeline.dataset.joined_split import open_split
    from pipeline.evaluation.feature_probes import probe

    assert task.classifier.model is not None
    assert config.probe != "none"
    accuracy = probe(
        config.probe,
        task.classifier.model,
        open_split(config.data, config.train_split),
        task.split,
        shots=config.shots,
        seed=config.seed,
        batch=config.batch,
        workers=config.workers,
        device=task.classifier.device,
        resize=task.classifier.known.resize,
    )
    print(f"{task.facts['checkpoint']}: {config.probe} probe of {len(task.split):,} samples, top-1 {accuracy:.2%}")
    print(json.dumps({**task.facts, "probe": config.probe, "shots": config.shots, "top1": accuracy}))
    if task.run_dir is not None:
        shots = f"-{config.shots}-shot" if config.shots else ""
        name = f"{result_name(config, task.split)}-{config.probe}{shots}"
        evaluations.keep(task.run_dir, name, task.facts["step"], task.facts, {"top1": accuracy})
        send(task.run_dir)


def judge_head(config: EvaluateConfig, task: Task) -> None:
    """Evaluate the model's own head, on any number of processes; the main one reports."""
    from pipeline.distributed.process_group import sum_over_processes
    from pipeline.evaluation.accuracy import evaluate
    from pipeline.evaluation.confusion import MOST_CLASSES, Tally

    accelerator, classifier, known = task.accelerator, task.classifier, task.classifier.known

    reduce = partial(sum_over_processes, accelerator)
    real = task.real
    tables = bool(config.out or (config.log and len(known.classes) <= MOST_CLASSES))
    if config.log and not tables and accelerator.is_main_process:
        logger.warning(
            "%d classes are too many for a per-class table and a confusion plot: none is kept", len(known.classes)
        )
    tally = Tally(len(known.classes), classifier.device, real) if tables or real is not None else None
    result = evaluate(
        classifier.forward,
        task.split,
        model=known.model,
        batch=config.batch,
        loss=known.loss,
        resize=known.resize,
        workers=config.workers,
        device=classifier.device,
        dtype=classifier.dtype,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        reduce=reduce,
        observe=tally.see if tally else None,
    )
    if tally is not None:
        tally.reduce(reduce)
    if accelerator.is_main_process:
        report(config, task, result, tally, tables=tables)
    accelerator.end_training()


def report(config: EvaluateConfig, task: Task, result: "Result", tally: "Tally | None", *, tables: bool) -> None:
    """Print the scores; write the tables and plots, if ``tables``; store them with the run. On the main process."""
    from pipeline.evaluation.confusion import write

    name = result_name(config, task.split)
    scores = {**result.metrics(""), **(tally.real if tally is not None else {})}
    # the scores first, so that an error in the tables and plots doesn't cost the evaluation
    try:
        if task.run_dir is not None:
            evaluations.keep(task.run_dir, name, task.facts["step"], task.facts, scores)
    finally:  # also if the disk is full by now
        real = f", ReaL {scores['real_top1']:.2%}" if "real_top1" in scores else ""
        print(f"{task.facts['checkpoint']}: {result}{real}")
        finite = {name: score if math.isfinite(score) else None for name, score in scores.items()}
        print(json.dumps({**task.facts, **finite}), flush=True)  # JSON has no NaN
    if tally is not None and tables:
        kept = task.run_dir / EVALUATIONS / name if task.run_dir is not None else None
        for folder in (config.out, kept):
            if folder is not None:
                write(folder, tally.confusion_CC.cpu().numpy(), task.classes, config.format)
                logger.info("per class: %s, %s", folder / "per_class.csv", folder / f"confusion.{config.format}")
    if task.run_dir is not None:
        send(task.run_dir)


def check(config: EvaluateConfig) -> None:
    """Check the options before anything slow is imported. Raises UserError."""
    check_model(config.model)
    arguments.check_least(config, batch=1, workers=0, shots=0, seed=0)
    if config.probe != "none" and config.train_split == config.split:
        raise UserError(
            f"--train-split {config.train_split!r} equals --split, so the probe would be evaluated on its training "
            "samples: name two splits"
        )
    if config.out is not None and config.out.exists() and not config.out.is_dir():
        raise UserError(f"--out {str(config.out)!r} is a file: name a folder")
    if config.out is not None:
        check_can_make(config.out, "--out")


def result_name(config: EvaluateConfig, split: "JoinedSplit") -> str:
    """The name of the result in the run's folder and in MLflow."""
    return name_of(split.info.name, config.split, average=config.average)


if __name__ == "__main__":
    cli.run(main)
