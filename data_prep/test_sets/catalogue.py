"""The list of test sets: names of the downloads, numbers of images, and where to get them. Pure.

Sources: ImageNet-2012 (image-net.org), ReaL (arXiv 2006.07159), ImageNet-V2 (arXiv 1902.10811), ImageNet-A (arXiv
1907.07174), ImageNet-R (arXiv 2006.16241), ImageNet-Sketch (arXiv 1905.13549), ObjectNet (objectnet.dev; NeurIPS 2019),
ImageNet-C (arXiv 1903.12261).
"""

from dataclasses import dataclass
from typing import Literal

Labels = Literal["wnid", "validation", "number", "objectnet", "corruption"]


@dataclass(frozen=True)
class TestSet:
    """One test set as its authors publish it."""

    __test__ = False  # pytest: not a class of tests

    name: str
    title: str
    images: tuple[int, ...]  # number of images in a complete download; the first is the number that papers state
    downloads: tuple[str, ...]  # names of files or folders, as globs
    get: str  # where to download it
    labels: Labels = "wnid"  # what tells an image's class: its folder's name, its own number, ...
    border: int = 0  # pixels cut off each side before anything else


# arXiv 1903.12261, section 3.1, in its order; the "extra" corruptions are for validation and don't count
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
MAPPINGS = (  # ObjectNet's folder "mappings"
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)
DEVKIT = "ILSVRC2012_devkit_t12*"
REAL = "real.json"

SETS = (
    TestSet(
        "val",
        "ImageNet-2012 val",
        (50_000,),
        ("ILSVRC2012_img_val.tar", "ILSVRC2012_img_val", "imagenet-val", "imagenet1k-val", "in1k-val", "in1k", "val"),
        "image-net.org: ILSVRC2012_img_val.tar, with ILSVRC2012_devkit_t12.tar.gz beside it",
        labels="validation",
    ),
    TestSet(
        "real",
        "ImageNet ReaL",
        (50_000,),
        (),  # val's images
        "github.com/google-research/reassessed-imagenet: real.json, beside the validation set",
        labels="validation",
    ),
    *(
        TestSet(
            name,
            f"ImageNet-V2 {words}",
            (10_000,),
            (f"imagenetv2-{download}.tar.gz", f"imagenetv2-{download}*.tar", f"imagenetv2-{download}-format-val", name),
            f"huggingface.co/datasets/vaishaal/ImageNetV2: imagenetv2-{download}.tar.gz",
            labels="number",
        )
        for name, words, download in (
            ("v2", "matched frequency", "matched-frequency"),
            ("v2-threshold", "threshold 0.7", "threshold0.7"),
            ("v2-top", "top images", "top-images"),
        )
    ),
    TestSet(
        "a", "ImageNet-A", (7_500,), ("imagenet-a.tar", "imagenet-a"),
        "github.com/hendrycks/natural-adv-examples: imagenet-a.tar",
    ),
    TestSet(
        "r", "ImageNet-R", (30_000,), ("imagenet-r.tar", "imagenet-r"),
        "github.com/hendrycks/imagenet-r: imagenet-r.tar",
    ),
    TestSet(
        "sketch", "ImageNet-Sketch", (50_889,), ("ImageNet-Sketch*", "imagenet-sketch*", "sketch"),
        "github.com/HaohanWang/ImageNet-Sketch: ImageNet-Sketch.zip",
    ),
    TestSet(
        "objectnet", "ObjectNet", (50_000, 50_273), ("objectnet-1.0", "objectnet*.zip", "objectnet*.tar", "objectnet"),
        "objectnet.dev: objectnet-1.0.zip; unpack it (it has a password)",
        labels="objectnet", border=2,
    ),
    TestSet(
        "c", "ImageNet-C", (len(CORRUPTIONS) * len(SEVERITIES) * 50_000,), ("ImageNet-C", "imagenet-c"),
        "zenodo.org/records/2235448: noise.tar, blur.tar, weather.tar and digital.tar, in a folder ImageNet-C",
        labels="corruption",
    ),
)  # fmt: skip
NAMES = tuple(test_set.name for test_set in SETS)


def named(name: str) -> TestSet:
    return next(test_set for test_set in SETS if test_set.name == name)
