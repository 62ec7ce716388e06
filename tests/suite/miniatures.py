"""Miniatures of the test sets as they are downloaded: the releases' names and nesting, a few images each.

Names and nesting: the sets' own repositories and archives (docs/how_to/compare.md lists them).
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import scipy.io
from PIL import Image

from data_prep.test_sets.catalogue import CORRUPTIONS, SEVERITIES
from pipeline.dataset.class_lists import listed, name_of

WNIDS = listed("imagenet1k") or []
VAL = (3, 41, 998, 41)  # class of each validation image
REAL = ([3], [40, 41], [], [7])  # ReaL's labels of these
A = (6, 11, 13)  # classes; two images each, and so on
OBJECTNET = {"air_freshener": (), "chair": (423, 559, 765), "banana": (954,), "weight": (422, 543)}


@dataclass(frozen=True)
class Expected:
    """One image that a set holds: its pixels' file, the classes that count as right, ReaL's labels or part."""

    data: bytes
    right: tuple[int, ...]
    part: str = ""


def picture(seed: int, ending: str = "jpeg", border: int = 0) -> bytes:
    """A smooth image; ObjectNet's have a red border."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
    pixels = cv2.resize(coarse, (44 + seed % 9, 40 + seed % 7), interpolation=cv2.INTER_CUBIC)
    pixels = cv2.copyMakeBorder(pixels, *[border] * 4, cv2.BORDER_CONSTANT, value=(255, 0, 0))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, ending, **({"quality": 95} if ending == "jpeg" else {}))
    return file.getvalue()


def make(root: Path) -> dict[str, list[Expected]]:
    """Every set below ``root``; returns the images of each, in no order."""
    root.mkdir()
    made = {"val": _validation(root)}
    made["real"] = [Expected(image.data, tuple(labels)) for image, labels in zip(made["val"], REAL, strict=True)]
    for number, name in enumerate(("v2", "v2-threshold", "v2-top")):
        made[name] = _v2(root, ("matched-frequency", "threshold0.7", "top-images")[number], 100 * number)
    made["a"] = _in_tar(root / "imagenet-a.tar", "imagenet-a", A, seed=500)
    made["r"] = list(_r(root / "imagenet-r"))
    made["sketch"] = list(_sketch(root / "ImageNet-Sketch.zip"))
    made["objectnet"] = list(_objectnet(root / "objectnet-1.0"))
    made["c"] = list(_corrupted(root / "ImageNet-C"))
    return made


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _validation(root: Path) -> list[Expected]:
    images = [Expected(picture(number), (label,)) for number, label in enumerate(VAL)]
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number, image in enumerate(images, 1):
            _add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", image.data)
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    rows = [(place + 1, WNIDS[label], name_of(WNIDS[label]), 0) for place, label in enumerate(sorted(set(VAL)))]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    order = sorted(set(VAL))
    truth = "".join(f"{order.index(label) + 1}\n" for label in VAL)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        _add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        _add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    (root / "real.json").write_text(json.dumps(REAL))
    return images


def _v2(root: Path, name: str, seed: int) -> list[Expected]:
    """Folders are class numbers, not padded; the tar is gzipped."""
    images = [Expected(picture(1000 + seed + number), (label,)) for number, label in enumerate((0, 10, 999))]
    with tarfile.open(root / f"imagenetv2-{name}.tar.gz", "w:gz") as tar:
        for number, image in enumerate(images):
            _add(tar, f"imagenetv2-{name}-format-val/{image.right[0]}/{number:040x}.jpeg", image.data)
    return images


def _in_tar(path: Path, top: str, labels: tuple[int, ...], seed: int) -> list[Expected]:
    images = [Expected(picture(seed + number), (label,)) for number, label in enumerate(labels * 2)]
    with tarfile.open(path, "w") as tar:
        _add(tar, f"{top}/README.txt", b"what it is")
        for number, image in enumerate(images):
            _add(tar, f"{top}/{WNIDS[image.right[0]]}/0.{number:06d}_animal _ animal_0.9.jpg", image.data)
    return images


def _r(folder: Path) -> Iterator[Expected]:
    """Unpacked, with PNG bytes in files called .jpg, as the set has."""
    for number, label in enumerate((1, 2, 4, 1)):
        place = folder / WNIDS[label]
        place.mkdir(parents=True, exist_ok=True)
        image = Expected(picture(600 + number, "png" if number == 2 else "jpeg"), (label,))
        (place / f"art_{number}.jpg").write_bytes(image.data)
        yield image
    (folder / "README.txt").write_text("what it is")


def _sketch(path: Path) -> Iterator[Expected]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/sketch/._sketch_1.JPEG", b"resource fork")
        for number, label in enumerate((0, 5, 1, 500)):
            image = Expected(picture(700 + number), (label,))
            packing = zipfile.ZIP_STORED if number == 3 else zipfile.ZIP_DEFLATED
            archive.writestr(f"sketch/{WNIDS[label]}/sketch_{number}.JPEG", image.data, packing)
            yield image


def _objectnet(folder: Path) -> Iterator[Expected]:
    words = {folder_name: folder_name.replace("_", " ").capitalize() for folder_name in OBJECTNET}
    tables = folder / "mappings"
    tables.mkdir(parents=True)
    (tables / "folder_to_objectnet_label.json").write_text(json.dumps(words))
    lines = [f"{name_of(wnid)}, {wnid}" for wnid in reversed(WNIDS)]  # another order than the wnids', as there
    (tables / "imagenet_to_label_2012_v2").write_text("".join(f"{line}\n" for line in lines))
    (tables / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps({str(k): 999 - k for k in range(1000)}))
    overlap = {
        words[name]: "; ".join(lines[999 - label] for label in labels) for name, labels in OBJECTNET.items() if labels
    }
    (tables / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap))
    for number, (name, labels) in enumerate(OBJECTNET.items()):
        place = folder / "images" / name
        place.mkdir(parents=True)
        for copy in range(2):
            data = picture(800 + 10 * number + copy, "png", border=2)
            (place / f"{number}{copy}.png").write_bytes(data)
            if labels:
                yield Expected(picture(800 + 10 * number + copy, "png"), labels)


def _corrupted(folder: Path) -> Iterator[Expected]:
    """Fifteen corruptions of five severities in four tars, and the extra ones, which don't count."""
    folder.mkdir()
    groups = {
        "noise": CORRUPTIONS[:3],
        "blur": CORRUPTIONS[3:7],
        "weather": CORRUPTIONS[7:11],
        "digital": CORRUPTIONS[11:],
    }
    for group, corruptions in {**groups, "extra": ("speckle_noise",)}.items():
        with tarfile.open(folder / f"{group}.tar", "w") as tar:
            for corruption in corruptions:
                for severity in SEVERITIES:
                    label = (len(corruption) * 31 + severity) % 1000
                    image = Expected(picture(900 + label), (label,), f"{corruption}/{severity}")
                    _add(tar, f"{corruption}/{severity}/{WNIDS[label]}/ILSVRC2012_val_00000001.JPEG", image.data)
                    if group != "extra":
                        yield image
