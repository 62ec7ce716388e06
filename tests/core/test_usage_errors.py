"""A wrong command line: one line that names the option, the value and what to give."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from pipeline.core import cli
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Data:
    """The dataset."""

    train: str = ""
    train_split: str = "train"
    crop: Literal["inception", "simple"] = "inception"
    flip: bool = True


@dataclass(frozen=True)
class Config:
    output: Annotated[Path, tyro.conf.Positional]
    data: Data = field(default_factory=Data)
    seed: int = 0
    lr: float = 1e-3
    workers: int | None = None


GROUP = "--data is a group of options: name one of them: --data.train, --data.train-split, --data.crop, --data.flip"
SEE = " (see vit test --help)"
MISTAKES = [
    (("out", "--lr", "x"), "--lr 'x' is not a number" + SEE),
    (("out", "--lr="), "--lr '' is not a number" + SEE),
    (("out", "--lr", "a: b"), "--lr 'a: b' is not a number" + SEE),
    (("out", "--seed", "1.5"), "--seed '1.5' is not a whole number" + SEE),
    (("out", "--seed"), "--seed has no value: give one" + SEE),
    (("out", "--data.crop", "Simple"), "--data.crop 'Simple' is unknown: name one of inception, simple" + SEE),
    (("out", "--data", "/x"), GROUP),
    (("out", "--data=/x"), GROUP),
    (("--output", "/x"), "OUTPUT is missing: give it without --output" + SEE),
    (("--output=/x",), "OUTPUT is missing: give it without --output" + SEE),
    (("--data.corp", "simple", "out"), "Unrecognized option: --data.corp Perhaps you meant: --data.crop" + SEE),
    (("--zzz", "simple", "out"), "Unrecognized option: --zzz" + SEE),
    (("--no-data.flip", "out", "--lr"), "--lr has no value: give one" + SEE),
    (("out", "more"), "Unrecognized options: more" + SEE),
]


@pytest.mark.parametrize(("args", "said"), MISTAKES)
def test_a_mistake_is_told_in_the_user_s_words(args: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as error:
        cli.parse(Config, prog="vit test", description="A test.", args=args)
    assert str(error.value) == said


@dataclass(frozen=True)
class Rates:
    rate_a: float = 0.0
    rate_b: float = 0.0
    rate_c: float = 0.0
    rate_d: float = 0.0


def test_of_many_names_that_are_nearly_right_only_the_names_are_shown() -> None:
    with pytest.raises(UserError) as error:
        cli.parse(Rates, prog="vit test", description="A test.", args=["--rate", "3"])
    names = "--rate-a, --rate-b, --rate-c, --rate-d"
    assert str(error.value) == f"Unrecognized options: --rate, 3 Perhaps you meant: {names}{SEE}"
