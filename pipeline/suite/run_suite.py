"""The side of the suite that runs the model: opened once, then one set after another; collective over the processes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from pipeline.checkpoint import format as checkpoint
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make
from pipeline.core.progress import Bar
from pipeline.distributed.process_group import make_accelerator, sum_over_processes
from pipeline.inference.classifier import Classifier, open_classifier
from pipeline.inference.image_files import Picture
from pipeline.interop.trained_model import is_run_or_checkpoint
from pipeline.model.preprocess import DTYPES
from pipeline.runs import evaluations, suite_results
from pipeline.runs.folder import EVALUATIONS
from pipeline.runs.suite_results import Result, result_key
from pipeline.suite.set_accuracy import Counts, accuracy
from pipeline.suite.subsets import corruption_scores, members

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_NAMED = 5  # damaged images in an error


@dataclass(frozen=True)
class Labelled:
    """A set's images with their classes, which stand for one or more wnids each."""

    name: str  # of the set
    title: str
    pictures: Sequence[Picture]
    labels: Sequence[int]  # class of each picture
    parts: Sequence[str]  # ImageNet-C: corruption and severity of each, such as "fog/3"; else ""
    classes: Sequence[tuple[str, ...]]
    real: Sequence[frozenset[int]] | None = None  # ReaL's labels of each picture: positions in ImageNet-2012's classes
    partial: bool = False  # the download lacks images


@dataclass(frozen=True)
class Suite:
    source: Path  # the checkpoint, or MODEL itself
    folder: Path | None  # of the results
    step: int | None  # of a run's checkpoint
    run_dir: Path | None  # where the results are logged
    classifier: Classifier
    accelerator: "Accelerator"
    batch: int
    workers: int
    average: bool  # of the running average of the weights

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        return int(self.accelerator.num_processes)

    def close(self) -> None:
        self.accelerator.end_training()

    def evaluate(self, data: Labelled) -> Result:
        """The set's result: the one that was kept, or a new one, which is kept. Raises UserError on every process."""
        names = [f"{picture.name} {picture.size}" for picture in data.pictures]
        key = self.key(names)
        kept = self.kept(data.name, key)
        if kept is None:
            scores = self._by_part(data, key) if any(data.parts) else self._whole(data)
            kept = self.keep(data.name, data.title, scores, key, partial=data.partial)
        self.log(kept)
        return kept

    def key(self, images: list[str]) -> str:
        """Of a result of this model on ``images``."""
        return result_key(self.source, images, dtype=str(self.classifier.dtype), average=self.average)

    def kept(self, name: str, key: str) -> Result | None:
        """The result that was kept. Rank 0 looks, so that all processes do the same."""
        from accelerate.utils import broadcast_object_list

        found = [suite_results.read(self.folder, name, key) if self.folder is not None and self.rank == 0 else None]
        if self.world_size > 1:
            broadcast_object_list(found)
        return found[0]

    def keep(self, name: str, title: str, scores: dict[str, float], key: str, *, partial: bool = False) -> Result:
        """The result, written to the folder of results."""
        result = Result(name, title, scores, key, partial, self.step, self.average)
        if self.folder is not None and self.rank == 0:
            suite_results.write(self.folder, result)
        return result

    def log(self, result: Result) -> None:
        """With --log: also keep the result with the run, and its scores for MLflow."""
        if self.run_dir is not None and self.rank == 0:
            assert self.step is not None
            suite_results.write(self.run_dir / EVALUATIONS, result)
            evaluations.append(self.run_dir, self.step, f"suite/{result.name}", result.scores)

    def check_classes(self) -> None:
        """Raises UserError if the model's classes can't be matched with a set's."""
        if not any(entry.wnid for entry in self.classifier.known.classes):
            raise UserError(
                f"MODEL {str(self.source)!r} does not name its classes by wnid, so they can't be matched with a set's: "
                "name the run, or an export with its model.json"
            )

    def _whole(self, data: Labelled) -> dict[str, float]:
        counts = self._count(data, range(len(data.pictures)), data.title)
        if data.real is not None:
            return {"samples": counts.real_samples, "top1": counts.real / max(counts.real_samples, 1)}
        return {
            "samples": counts.samples,
            "top1": counts.top1 / counts.samples,
            "top5": counts.top5 / counts.samples,
        }

    def _by_part(self, data: Labelled, key: str) -> dict[str, float]:
        """ImageNet-C: each corruption at each severity is kept by itself, as all of them take a day."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, part in enumerate(data.parts):
            rows[part].append(row)
        errors: dict[str, dict[int, float]] = defaultdict(dict)
        samples = 0.0
        for part, chosen in sorted(rows.items()):
            name = f"{data.name}/{part}"
            kept = self.kept(name, key)
            if kept is None:
                title = f"{data.title}, {part}"
                counts = self._count(data, chosen, title)
                scores = {"samples": float(counts.samples), "top1": counts.top1 / counts.samples}
                kept = self.keep(name, title, scores, key, partial=data.partial)
            corruption, severity = part.split("/")
            errors[corruption][int(severity)] = 1.0 - kept.scores["top1"]
            samples += kept.scores["samples"]
        each = {f"top1_{name}": 1.0 - sum(of.values()) / len(of) for name, of in errors.items()}
        return {"samples": samples, **corruption_scores(errors), **each}

    def _count(self, data: Labelled, rows: Sequence[int], title: str) -> Counts:
        group_C = members(data.classes, [entry.wnid for entry in self.classifier.known.classes], data.title)
        with Bar(title, len(rows), "images", shown=self.rank == 0) as bar:
            counts = accuracy(
                self.classifier,
                [data.pictures[row] for row in rows],
                [data.labels[row] for row in rows],
                group_C,
                real=[data.real[row] for row in rows] if data.real is not None else None,
                batch=self.batch,
                workers=self.workers,
                rank=self.rank,
                world_size=self.world_size,
                reduce=self.sum,
                gather=self._gather,
                advance=bar.advance,
            )
        if counts.damaged:
            more = f" and {len(counts.damaged) - MOST_NAMED} more" if len(counts.damaged) > MOST_NAMED else ""
            raise UserError(
                f"{len(counts.damaged)} images of {title} can't be read, so there is no result: "
                f"{'; '.join(counts.damaged[:MOST_NAMED])}{more}: download it again"
            )
        return counts

    def sum(self, sums: torch.Tensor) -> torch.Tensor:
        """Over the processes."""
        return sum_over_processes(self.accelerator, sums)

    def _gather(self, names: list[str]) -> list[str]:
        from accelerate.utils import gather_object

        return list(gather_object(names)) if self.world_size > 1 else names


def open_suite(
    model: Path, folder: Path | None, *, log: bool, dtype: Literal["float32", "bfloat16"], average: bool, batch: int,
    workers: int, trust_code: bool = False,
) -> Suite:  # fmt: skip
    """``folder``: of the results; a run's own are in RUN/evaluations. ``log``: also in the run's records, for MLflow.

    Raises UserError.
    """
    accelerator = make_accelerator()
    source = checkpoint.find(model).path if is_run_or_checkpoint(model) else model
    of_run = is_run_or_checkpoint(source)
    run_dir = evaluations.run_of(source) if log else None
    if folder is None and of_run:
        folder = source.absolute().parent.parent / EVALUATIONS
        check_can_make(folder, "the run's")
    classifier = open_classifier(
        source, device=accelerator.device, dtype=DTYPES[dtype], average=average, trust_code=trust_code
    )
    return Suite(
        source, folder, checkpoint.read_meta(source).step if of_run else None, run_dir, classifier, accelerator, batch,
        workers, average,
    )  # fmt: skip
