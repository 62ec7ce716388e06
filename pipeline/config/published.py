"""Published figures: the sizes of ImageNet, and the accuracies that runs are compared with. Each is stated here once.

Top-1 in per cent, on the 50,000 validation images of ImageNet-2012, or on held-out images of ImageNet-21K.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sizes:
    images: int
    classes: int


IMAGENET: dict[Literal["pretrain", "finetune"], Sizes] = {
    "pretrain": Sizes(14_197_122, 21_843),  # ImageNet-21K, fall 2011
    "finetune": Sizes(1_281_167, 1000),  # ImageNet-2012, training split
}


@dataclass(frozen=True)
class Figure:
    """Top-1 after fine-tuning on ImageNet-2012."""

    recipe: str  # of jobs.finetune
    parent: str  # recipe of the pretraining
    top1: float
    source: str  # whose model, and where the figure is published
    by: Literal["authors", "timm"]  # who measured it
    pixels: int  # side of the images
    crop: str  # how the authors, or timm, prepared the images
    options: str = ""  # differences from the recipe


# vision_transformer: arXiv 2010.11929 and github.com/google-research/vision_transformer, which resize to the square.
# AugReg: arXiv 2106.10270, with the figures of its README there. DeiT III: arXiv 2204.07118 (the authors' own: 85.7,
# 87.0, 86.7, 87.7). timm: results of huggingface/pytorch-image-models, August 2026; crop: fraction of the resized side.
FINETUNED = (
    #      recipe          parent         top-1  source                       by        px   crop
    Figure("b16",           "b16_paper",   83.97, "ViT paper, Table 5",        "authors",384, "square"),
    Figure("b16",           "b16",         85.49, "AugReg, 300 epochs",        "authors",384, "square"),
    Figure("b16",           "b16",         86.01, "AugReg medium1, timm",      "timm",   384, "1.0", "--optim.lr 0.01"),
    Figure("b32",           "b32_paper",   81.28, "ViT paper, Table 5",        "authors",384, "square"),
    Figure("b32",           "b32",         83.59, "AugReg, 300 epochs",        "authors",384, "square"),
    Figure("l16",           "l16_paper",   85.15, "ViT paper, Table 5",        "authors",384, "square"),
    Figure("l16",           "l16",         87.10, "AugReg medium1, timm",      "timm",   384, "1.0"),
    Figure("l16_strong1",   "l16_strong1", 85.59, "AugReg strong1, 300 epochs","authors",384, "square"),
    Figure("l16_224",       "l16",         85.86, "AugReg medium1, timm",      "timm",   224, "0.9"),
    Figure("l16_512",       "l16_paper",   85.30, "ViT paper, Table 2",        "authors",512, "square"),
    Figure("l32",           "l32_paper",   80.99, "ViT paper, Table 5",        "authors",384, "square"),
    Figure("l32",           "l32_paper",   81.51, "ViT paper's weights, timm", "timm",   384, "1.0"),
    Figure("b16_deit3",     "b16_deit3",   86.74, "DeiT III, timm",            "timm",   384, "1.0"),
    Figure("b16_deit3_224", "b16_deit3",   85.73, "DeiT III, timm",            "timm",   224, "1.0"),
    Figure("l16_deit3",     "l16_deit3",   87.74, "DeiT III, timm",            "timm",   384, "1.0"),
    Figure("l16_deit3_224", "l16_deit3",   86.99, "DeiT III, timm",            "timm",   224, "1.0"),
)  # fmt: skip

# precision@1 on held-out ImageNet-21K, by recipe of jobs.pretrain
PRETRAINED = {"b16_paper": 47.88, "b32_paper": 44.04, "l16_paper": 49.90, "l32_paper": 45.42}
PRETRAINED_SOURCE = "vision_transformer#62"  # an issue of google-research/vision_transformer

# During fine-tuning on ImageNet-2012, by recipe: epoch -> top-1. facebookresearch/deit, README_revenge.md
COURSES = {
    "b16_deit3_224": {
        5: 83.445, 10: 84.677, 15: 85.211, 20: 85.265, 25: 85.333, 30: 85.437, 35: 85.675, 40: 85.671, 45: 85.707,
        50: 85.698,
    },
    "l16_deit3_224": {
        5: 85.427, 10: 86.362, 15: 86.624, 20: 86.696, 25: 86.826, 30: 86.830, 35: 86.954, 40: 86.944, 45: 86.934,
        50: 86.980,
    },
}  # fmt: skip
COURSE_BATCH = 2048  # samples per step of these


def held_against(stage: str, recipe: str, pixels: int) -> dict[str, float]:
    """Figures that a run of this recipe on ImageNet may be compared with, by source."""
    if stage == "pretrain":
        return {PRETRAINED_SOURCE: PRETRAINED[recipe]} if recipe in PRETRAINED else {}
    return {
        figure.source: figure.top1
        for figure in FINETUNED
        if (figure.recipe, figure.pixels, figure.options) == (recipe, pixels, "")
    }


def target(stage: str, recipe: str) -> str:
    """One sentence for --help: the accuracy that a run of this recipe should reach, and who measured it."""
    found = []
    for figure in FINETUNED:
        if stage == "finetune" and figure.recipe == recipe:
            options = f" with {figure.options}" if figure.options else ""
            found.append(f"{figure.top1:.2f}{options} ({figure.source})")
        elif stage == "pretrain" and figure.parent == recipe and not figure.options:
            found.append(f"{figure.top1:.2f} fine-tuned at {figure.pixels} px ({figure.source})")
    if stage == "pretrain" and recipe in PRETRAINED:
        found.append(f"{PRETRAINED[recipe]:.2f} on held-out ImageNet-21K ({PRETRAINED_SOURCE})")
    return f"Target: {', '.join(found)}." if found else "No published target."
