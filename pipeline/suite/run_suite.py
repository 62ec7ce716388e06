"""Running the model on the suite: opened once, then one set after another; collective over the processes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from pipeline.checkpoint import format as checkpoint
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make
from pipeline.core.progress import Bar
from pipeline.dataset.class_lists import listed
from pipeline.distributed.process_group import make_accelerator, sum_over_processes
from pipeline.inference.classifier import Classifier, open_classifier
from pipeline.inference.image_files import Picture
from pipeline.interop.trained_model import is_run_or_checkpoint
from pipeline.model.preprocess import DTYPES
from pipeline.runs import evaluations, suite_results
from pipeline.runs.folder import EVALUATIONS
from pipeline.runs.suite_results import Result, result_key
from pipeline.suite.set_accuracy import Counts, RealLabels, accuracy
from pipeline.suite.subsets import corruption_scores, members

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_NAMED = 5  # damaged images named in an error
REAL = "real"  # name of the result by ReaL's labels


@dataclass(frozen=True)
class Labelled:
    """A set's images with their classes, each of which comprises one or more wnids."""

    titles: Mapping[str, str]  # of the results that are asked for, by their names: the set's, REAL, or both
    pictures: Sequence[Picture]
    labels: Sequence[int]  # class of each image
    parts: Sequence[str]  # ImageNet-C: corruption and severity of each, such as "fog/3"; else ""
    classes: Sequence[tuple[str, ...]]
    real: Sequence[frozenset[int]] = ()  # ReaL's labels of each image, as indices of ImageNet-2012's classes
    partial: bool = False  # the download lacks images


@dataclass(frozen=True)
class Suite:
    source: Path  # the checkpoint, or MODEL itself
    folder: Path | None  # for the results
    step: int | None  # step of a run's checkpoint
    run_dir: Path | None  # where the results are logged
    classifier: Classifier
    accelerator: "Accelerator"
    batch: int
    workers: int
    average: bool  # whether the weights are the running average

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        return int(self.accelerator.num_processes)

    def close(self) -> None:
        self.accelerator.end_training()

    def evaluate(self, data: Labelled) -> list[Result]:
        """The results that ``data.titles`` names: stored ones, or new ones, which are stored. One pass over the images.

        Raises UserError on every process.
        """
        images = [f"{picture.name} {picture.size}" for picture in data.pictures]
        keys = {name: self.key(images) for name in data.titles}
        if REAL in keys:
            keys[REAL] = self.key([*images, *(repr(sorted(labels)) for labels in data.real)])
        found = {name: self.kept(name, key) for name, key in keys.items()}
        if not all(found.values()):
            scores = self._by_part(data, keys) if any(data.parts) else self._whole(data)
            for name, title in data.titles.items():
                if found[name] is None:
                    found[name] = self.keep(name, title, scores[name], keys[name], partial=data.partial)
        results = [result for result in found.values() if result is not None]
        for result in results:
            self.log(result)
        return results

    def key(self, images: list[str]) -> str:
        """Of a result of this model on ``images``."""
        return result_key(self.source, images, dtype=str(self.classifier.dtype), average=self.average)

    def kept(self, name: str, key: str) -> Result | None:
        """The stored result. Only rank 0 reads it, so that all processes use the same."""
        from accelerate.utils import broadcast_object_list

        found: list[Result | None] = [None]
        if self.folder is not None and self.rank == 0:
            found = [suite_results.read(self.folder, name, key, average=self.average)]
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
        """With --log: also keep the result with the run, and its scores for MLflow if they aren't there yet."""
        if self.run_dir is None or self.rank != 0:
            return
        assert self.step is not None
        if self.folder != self.run_dir / EVALUATIONS:
            suite_results.write(self.run_dir / EVALUATIONS, result)
        scores = suite_results.metrics(result)
        if not evaluations.is_logged(self.run_dir, self.step, scores):
            evaluations.append(self.run_dir, self.step, scores)

    def check_classes(self) -> None:
        """Raise UserError if the model's classes can't be matched with a set's."""
        if not any(entry.wnid for entry in self.classifier.known.classes):
            raise UserError(
                f"MODEL {str(self.source)!r} does not name its classes by wnid, so they can't be matched with a set's: "
                "name the run, or an export with its model.json"
            )

    def _whole(self, data: Labelled) -> dict[str, dict[str, float]]:
        """Scores by result."""
        title, images = " and ".join(data.titles.values()), len(data.pictures)
        with Bar(title, images, "images", shown=self.rank == 0) as bar:
            counts = self._count(data, range(images), title, bar.advance)
        by_set = {
            "samples": float(counts.samples),
            "top1": counts.top1 / counts.samples,
            "top5": counts.top5 / counts.samples,
        }
        by_real = {"samples": float(counts.real_samples), "top1": counts.real / max(counts.real_samples, 1)}
        return {name: by_real if name == REAL else by_set for name in data.titles}

    def _by_part(self, data: Labelled, keys: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """ImageNet-C: each corruption at each severity is stored separately, since all of them take a day.

        One bar shows the progress of all.
        """
        ((result, set_title),) = data.titles.items()
        rows: dict[str, list[int]] = defaultdict(list)
        for row, part in enumerate(data.parts):
            rows[part].append(row)
        errors: dict[str, dict[int, float]] = defaultdict(dict)
        samples = 0.0
        found = {part: self.kept(f"{result}/{part}", keys[result]) for part in sorted(rows)}
        done = sum(len(rows[part]) for part, kept in found.items() if kept is not None)
        with Bar(set_title, len(data.pictures), "images", start=done, shown=self.rank == 0) as bar:
            for part, kept in found.items():
                if kept is None:
                    title = f"{set_title}, {part}"
                    counts = self._count(data, rows[part], title, partial(bar.advance, note=part))
                    scores = {"samples": float(counts.samples), "top1": counts.top1 / counts.samples}
                    kept = self.keep(f"{result}/{part}", title, scores, keys[result], partial=data.partial)  # noqa: PLW2901
                    done += len(rows[part])
                    bar.update(done, part)  # of several processes each has counted a little too much
                corruption, severity = part.split("/")
                errors[corruption][int(severity)] = 1.0 - kept.scores["top1"]
                samples += kept.scores["samples"]
        each = {f"top1_{name}": 1.0 - sum(of.values()) / len(of) for name, of in errors.items()}
        return {result: {"samples": samples, **corruption_scores(errors), **each}}

    def _count(self, data: Labelled, rows: Sequence[int], title: str, advance: Callable[[int], None]) -> Counts:
        wnids = [entry.wnid for entry in self.classifier.known.classes]
        real = None
        if data.real:
            every = [(wnid,) for wnid in listed("imagenet1k") or []]  # what ReaL's labels count
            real = RealLabels([data.real[row] for row in rows], members(every, wnids, title))
        counts = accuracy(
            self.classifier,
            [data.pictures[row] for row in rows],
            [data.labels[row] for row in rows],
            members(data.classes, wnids, title),
            real=real,
            batch=self.batch,
            workers=self.workers,
            rank=self.rank,
            world_size=self.world_size,
            reduce=self.sum,
            gather=self._gather,
            advance=advance,
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
