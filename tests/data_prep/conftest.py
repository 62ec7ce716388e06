"""Real photographs, cut and encoded small, as the raw images of four classes."""

import cv2
import numpy as np
import pytest
import simplejpeg

from tests.data_prep.releases import WNIDS, Images


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """96 different JPEGs of 24 to 120 pixels, of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images  # slow to import

    random = np.random.default_rng(0)
    pictures = load_sample_images().images
    jpegs = []
    for number in range(96):
        height, width = (int(side) for side in random.integers(24, 120, 2))
        top, left = int(random.integers(427 - height)), int(random.integers(640 - width))
        crop = np.ascontiguousarray(pictures[number % 2][top : top + height, left : left + width])
        jpegs.append(simplejpeg.encode_jpeg(cv2.GaussianBlur(crop, (3, 3), 0), 90, "RGB", "420"))
    assert len(set(jpegs)) == 96
    return jpegs


@pytest.fixture(scope="session")
def images(photos: list[bytes]) -> Images:
    """wnid -> name -> bytes; classes of unequal size."""
    sizes = (40, 30, 20, 6)
    starts = np.cumsum([0, *sizes])
    return {
        wnid: {f"{wnid}_{number}.JPEG": photos[number] for number in range(start, start + size)}
        for wnid, start, size in zip(WNIDS, starts, sizes, strict=False)
    }
