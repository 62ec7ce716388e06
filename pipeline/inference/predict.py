"""Classify many images on any number of processes: batches in, predictions in the images' order out."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline.inference.attention_rollout import attentions, draw, rollout
from pipeline.inference.classifier import Classifier
from pipeline.inference.image_files import Picture, PictureBatch, batches
from pipeline.inference.predictions import Answer
from pipeline.model.preprocess import normalise

LONGEST_STEM = 200  # bytes of an image's name in its roll-out's file name: file systems allow 255 in all
LONGEST_TITLE = 100  # characters of the name in the plot's title


def predictions(
    classifier: Classifier,
    pictures: Sequence[Picture],
    accelerator: Accelerator,
    *,
    top: int,
    batch: int,
    workers: int,
    rollouts: Path | None = None,
) -> Iterator[list[Answer]]:
    """The predictions in the order of the images, one list per round of batches; collective over the processes.

    ``top``: classes per image; ``rollouts``: folder for the attention roll-outs. Raises UserError if the model's
    outputs are non-finite.
    """
    mine = batches(
        pictures,
        batch=batch,
        size=classifier.known.model.image_size,
        resize=classifier.known.resize,
        upright=classifier.known.upright,
        workers=workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    for _ in range(-(-len(pictures) // (batch * accelerator.num_processes))):
        own = next(mine, None)
        answers = classify(classifier, pictures, own, top, rollouts) if own else []
        yield gather_object(answers) if accelerator.num_processes > 1 else answers


def classify(
    classifier: Classifier, pictures: Sequence[Picture], batch: PictureBatch, top: int, rollouts: Path | None = None
) -> list[Answer]:
    """Predictions for one batch in order, including unreadable images; draws the roll-outs."""
    answers = {place: Answer(pictures[place].name, error=reason) for place, reason in batch.bad}
    if batch.kept:
        classes_BK, probabilities_BK = classifier.classify(batch.images_BHWC, top)
        for place, classes, probabilities in zip(
            batch.kept, classes_BK.tolist(), probabilities_BK.tolist(), strict=True
        ):
            answers[place] = Answer(pictures[place].name, tuple(classes), tuple(probabilities))
        if rollouts is not None:
            draw_rollouts(rollouts, classifier, batch, answers)
    return [answers[place] for place in sorted(answers)]


def draw_rollouts(folder: Path, classifier: Classifier, batch: PictureBatch, answers: dict[int, Answer]) -> None:
    """Write ``000012-name.png`` for image 12; a very long name is cut, and the number keeps it unique."""
    assert classifier.model is not None
    x_BCHW = normalise(batch.images_BHWC.to(classifier.device), classifier.dtype, classifier.known.model)
    maps_BGG = rollout(attentions(classifier.model, x_BCHW), classifier.known.model.registers).numpy()
    for place, image_HWC, map_GG in zip(batch.kept, batch.images_BHWC.numpy(), maps_BGG, strict=True):
        own = answers[place]
        pairs = [
            (classifier.known.classes[index].name, probability)
            for index, probability in zip(own.classes, own.probabilities, strict=True)
        ]
        stem = Path(own.image).stem.encode()[:LONGEST_STEM].decode(errors="ignore")
        draw(image_HWC, map_GG, Path(own.image).name[:LONGEST_TITLE], pairs, folder / f"{place:06d}-{stem}.png")
