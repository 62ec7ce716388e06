"""Switches and outputs are spelt in one way in every command, and nearly right names are recognised."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.config.recipes import FINETUNE, PRETRAIN
from pipeline.core import arguments, cli
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Data:
    flip: bool = True
    min_area: float = 0.05


@dataclass(frozen=True)
class Config:
    data: Data = field(default_factory=Data)
    offload: bool = False
    json: str = ""


SPELLINGS = [
    (("--offload",), {"offload": True}),
    (("--offload", "True"), {"offload": True}),
    (("--offload=true",), {"offload": True}),
    (("--offload", "False"), {"offload": False}),
    (("--no-offload",), {"offload": False}),
    (("--no-offload", "false"), {"offload": True}),
    (("--data.flip",), {"flip": True}),
    (("--data.flip", "false"), {"flip": False}),
    (("--data.no-flip",), {"flip": False}),
    (("--no-data.flip",), {"flip": False}),
    (("--data.flip=False", "--data.min-area", "0.5"), {"flip": False}),
    (("--json",), {"json": "-"}),
    (("--json", "--offload"), {"json": "-", "offload": True}),
    (("--json", "-"), {"json": "-"}),
    (("--json", "out.json"), {"json": "out.json"}),
]


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize(("args", "expected"), SPELLINGS)
def test_each_spelling_is_taken_by_every_command(
    args: tuple[str, ...], expected: dict[str, object], flags: bool
) -> None:
    config = cli.parse(Config, prog="prog", description="", args=args, flags=flags)
    found = {"flip": config.data.flip, "offload": config.offload, "json": config.json}
    assert found == {"flip": True, "offload": False, "json": ""} | expected


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize("args", [("--offload=perhaps",), ("--no-min-area",), ("--ofload",)])
def test_a_mistake_stays_one(args: tuple[str, ...], flags: bool) -> None:
    with pytest.raises(UserError, match=r"perhaps|no-min-area|ofload"):
        cli.parse(Config, prog="prog", description="", args=args, flags=flags)


def test_an_output_that_can_t_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "a.json"):
        with pytest.raises(UserError, match=r"--json .* can't be written: name a file in a folder that exists, or -"):
            cli.parse(Config, prog="prog", description="", args=("--json", str(path)))


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("vit_large_patch16_224", "l16"),
        ("vit_base_patch32_224.augreg_in21k", "b32"),
        ("google/vit-large-patch16-224-in21k", "l16"),
        ("ViT-B/16", "b16"),
        ("deit3_large_patch16_224", "l16_deit3"),
        ("vit_l_32", "l32"),
        ("b61", "b16"),
        ("tinny", "tiny"),
        ("resnet50", ""),
        ("vit_huge_patch14_224", ""),
    ],
)
def test_names_of_timm_transformers_and_the_paper(word: str, meant: str) -> None:
    assert arguments.nearest(word, PRETRAIN) == meant
    assert meant in ("", arguments.nearest(word, FINETUNE)) or meant not in FINETUNE


def test_options_of_nested_configurations_are_found() -> None:
    found = dict(arguments.fields_of(type(PRETRAIN["tiny"].config)))
    assert found["data.flip"] is bool
    assert found["train.offload"] is bool
    assert found["data.min-area"] is float
