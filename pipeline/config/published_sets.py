"""Published top-1 accuracy in per cent on ImageNet's other test sets.

From timm's evaluation (results/*.csv of huggingface/pytorch-image-models, August 2026); A and R on their 200 classes.
"""

from typing import NamedTuple

SOURCE = "timm, August 2026"
PIXELS = 384  # side of the images


class Published(NamedTuple):
    model: str  # its name in papers, and its size
    top1: dict[str, float]  # by the set's name (data_prep.test_sets.catalogue)


# ImageNet's own validation set: the best figure of the same table, whole image at 384 px
PUBLISHED = {
    ("l16", "deit3"): Published(
        "DeiT III L/16", {"val": 87.74, "real": 90.25, "v2": 79.22, "a": 79.32, "r": 70.62, "sketch": 54.91}
    ),
    ("b16", "deit3"): Published(
        "DeiT III B/16", {"val": 86.74, "real": 89.89, "v2": 77.98, "a": 71.29, "r": 62.68, "sketch": 47.68}
    ),
    ("l16", "vit"): Published(
        "AugReg L/16", {"val": 87.10, "real": 90.22, "v2": 77.79, "a": 71.05, "r": 67.12, "sketch": 52.80}
    ),
    ("b16", "vit"): Published(
        "AugReg B/16", {"val": 86.01, "real": 89.97, "v2": 76.16, "a": 63.03, "r": 60.19, "sketch": 45.90}
    ),
    ("b32", "vit"): Published(
        "AugReg B/32", {"val": 83.36, "real": 87.90, "v2": 72.68, "a": 36.52, "r": 53.40, "sketch": 38.83}
    ),
    ("l32", "vit"): Published(
        "original ViT L/32", {"val": 81.51, "real": 85.91, "v2": 70.89, "a": 38.84, "r": 48.36, "sketch": 34.71}
    ),
}


def nearest(variant: str, *, layer_scale: bool) -> Published | None:
    """The published model of the same size: DeiT III's for a model with LayerScale if such a figure exists."""
    family = "deit3" if layer_scale else "vit"
    return PUBLISHED.get((variant, family)) or PUBLISHED.get((variant, "vit"))
