"""What a user gave and only the data, the parent or the length of the run show to be without effect is warned about."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.recipes import FINETUNE, PRETRAIN
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import with_values
from pipeline.dataset.joined_split import open_split
from pipeline.distributed.ranks import Ranks
from pipeline.runs.folder import RunFolder
from pipeline.train.initial_weights import Parent, inherit
from pipeline.train.setup import remarks, without_effect
from pipeline.train.state import Job


def tiny(**values: object) -> tuple[RunConfig, frozenset[str]]:
    options = {name.replace("__", "."): value for name, value in values.items()}
    return with_values(PRETRAIN["tiny"].config, options), frozenset(options)


@pytest.mark.parametrize(
    ("options", "steps", "part"),
    [
        (
            {"checkpoint__keep_every": 150},
            300,
            "checkpoint.keep_every 150 has no effect: no step before the last (300)",
        ),
        ({"checkpoint__keep_every": 150}, 301, ""),
        ({"checkpoint__keep_every": 150, "checkpoint__minutes": 1.0}, 300, ""),
        ({"checkpoint__keep_every": 0}, 300, ""),
        ({"checkpoint__keep_best": 2, "train__eval_every": 150}, 300, "checkpoint.keep_best 2 has no effect"),
        ({"checkpoint__keep_best": 2, "train__eval_every": 150}, 301, ""),
        ({"train__profile": 3}, 10, "train.profile 3 has no effect: the first 10 steps"),
        ({"train__profile": 3}, 11, ""),
    ],
)
def test_by_the_length_of_the_run(options: dict[str, object], steps: int, part: str) -> None:
    config, given = tiny(**options)
    found = list(without_effect(config, steps, given))
    assert len(found) == bool(part)
    assert not part or found[0].startswith(part)
    assert not list(without_effect(config, steps, frozenset())), "the recipe's own values are not complained of"


def test_evaluation_options_without_a_held_out_split(digits: Path, tmp_path: Path) -> None:
    for options, level in (({"train__eval_batch": 8}, logging.WARNING), ({"train__eval_every": 0}, logging.INFO)):
        config, given = tiny(run_dir=str(tmp_path), **options)
        ranks = Ranks(0, 1, 0, "alone")
        job = Job(open_split(digits, "train"), None, 5000, ranks, {}, RunFolder(tmp_path), given)
        ((found, text),) = [(level, text) for level, text in remarks(config, job) if "no evaluation" in text]
        assert found == level
        assert ("train.eval_batch without effect" in text) == (level == logging.WARNING)


def test_a_fine_tune_without_held_out_images_is_warned_of(digits: Path, tmp_path: Path) -> None:
    config = replace(FINETUNE["tiny"].config, run_dir=tmp_path, parent="scratch")
    data = replace(config.data, train=(str(digits),))
    split = open_split(digits, "train")
    job = Job(split, None, 5000, Ranks(0, 1, 0, "alone"), {}, RunFolder(tmp_path), frozenset())

    def warnings(run: RunConfig, job: Job) -> list[str]:
        return [text for level, text in remarks(run, job) if level == logging.WARNING and "held-out" in text]

    (said,) = warnings(replace(config, data=data), job)
    assert said.startswith(f"no held-out images: {str(digits)!r} has no split 'val'")
    assert "shard the images with --val-fraction 0.1, or name a --data.eval" in said
    assert not warnings(replace(config, data=replace(data, eval_split="none")), job), "it was asked for"
    assert not warnings(replace(config, data=data), replace(job, held_out=open_split(digits, "val")))
    assert not warnings(replace(PRETRAIN["tiny"].config, run_dir=tmp_path, data=data), job), (
        "pretraining often has none"
    )


def test_a_normalisation_that_was_given_is_not_replaced_by_the_parent_s() -> None:
    config = FINETUNE["tiny"].config
    parent = Parent(replace(config.model, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)), {}, {})
    assert inherit(config, parent).model == parent.model
    assert inherit(config, parent, {"model.mean"}).model.mean == ModelConfig.mean


def test_a_position_embedding_that_needs_no_resizing(caplog: pytest.LogCaptureFixture) -> None:
    config = FINETUNE["tiny"].config
    for size, warned in ((config.model.image_size, True), (32, False)):
        caplog.clear()
        inherit(config, Parent(replace(config.model, image_size=size), {}, {}), {"model.position_resize"})
        assert ("model.position_resize bilinear has no effect" in caplog.text) == warned
