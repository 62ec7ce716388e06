"""The published figures: each stands once, belongs to a recipe, and is what --help and jobs.compare show."""

import pytest

from pipeline.config.published import COURSES, FINETUNED, IMAGENET, PRETRAINED, held_against, target
from pipeline.config.recipes import FINETUNE, PRETRAIN

# typed in once more from the sources: ViT paper Tables 2 and 5, vision_transformer's README, timm's results
FIGURES = {
    ("b16", 83.97), ("b16", 85.49), ("b16", 86.01), ("b32", 81.28), ("b32", 83.59), ("l16", 85.15), ("l16", 87.10),
    ("l16_strong1", 85.59), ("l16_224", 85.86), ("l16_512", 85.30), ("l32", 80.99), ("l32", 81.51),
    ("b16_deit3", 86.74), ("b16_deit3_224", 85.73), ("l16_deit3", 87.74), ("l16_deit3_224", 86.99),
}  # fmt: skip


def test_the_figures() -> None:
    assert {(figure.recipe, figure.top1) for figure in FINETUNED} == FIGURES
    assert len(FINETUNED) == len(FIGURES)
    assert (IMAGENET["pretrain"].images, IMAGENET["pretrain"].classes) == (14_197_122, 21_843)
    assert (IMAGENET["finetune"].images, IMAGENET["finetune"].classes) == (1_281_167, 1000)


@pytest.mark.parametrize("figure", FINETUNED, ids=lambda figure: f"{figure.recipe} {figure.top1}")
def test_a_figure_belongs_to_its_recipes(figure) -> None:  # type: ignore[no-untyped-def]
    assert FINETUNE[figure.recipe].config.model.image_size == figure.pixels
    assert FINETUNE[figure.recipe].config.model.variant == PRETRAIN[figure.parent].config.model.variant
    assert f"{figure.top1:.2f}" in FINETUNE[figure.recipe].summary
    held = held_against("finetune", figure.recipe, figure.pixels)
    assert (held.get(figure.source) == figure.top1) == (not figure.options)
    assert held_against("finetune", figure.recipe, figure.pixels + 1) == {}


def test_what_help_says() -> None:
    assert target("finetune", "b16") == (
        "Target: 83.97 (ViT paper, Table 5), 85.49 (AugReg, 300 epochs), 86.01 with --optim.lr 0.01 (AugReg medium1, "
        "timm)."
    )
    assert target("pretrain", "l16_paper") == (
        "Target: 85.15 fine-tuned at 384 px (ViT paper, Table 5), 85.30 fine-tuned at 512 px (ViT paper, Table 2), "
        "49.90 on held-out ImageNet-21K (vision_transformer#62)."
    )
    assert target("pretrain", "l32") == "No published target."


def test_courses_and_pretraining_belong_to_recipes() -> None:
    assert COURSES.keys() <= FINETUNE.keys()
    assert PRETRAINED.keys() <= PRETRAIN.keys()
    for recipe, points in COURSES.items():
        assert list(points) == list(range(5, int(FINETUNE[recipe].config.schedule.epochs) + 1, 5))
