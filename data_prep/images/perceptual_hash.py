"""Perceptual hashes: similar images get similar hashes, whatever their size, format or compression."""

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.imaging.jpeg import decode_small

SIDE = 32  # side of the hashed image, pixels
FLATTEST = 2.0  # standard deviation in grey levels; flatter images all look alike and get no hash


def thumbnail(jpeg: bytes) -> npt.NDArray[np.float32]:
    """The image as 32 x 32 grey levels, area-averaged. Raises ValueError if it can't be decoded."""
    grey_HW1 = decode_small(jpeg, "GRAY", 4 * SIDE, 4 * SIDE)
    return cv2.resize(  # type: ignore[return-value]
        grey_HW1[:, :, 0].astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA
    )


def of_thumbnail(small_HW: npt.NDArray[np.float32]) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies of the image's DCT are above their median; 0 for flat images.

    The constant term, which is the brightness, counts neither in the median nor as a bit.
    """
    if float(small_HW.std()) < FLATTEST:
        return 0
    low = cv2.dct(small_HW)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = True  # so that no hash is 0
    return int(np.packbits(bits).view(">u8")[0])


def similarity(a_HW: npt.NDArray[np.float32], b_HW: npt.NDArray[np.float32]) -> float:
    """Correlation of two thumbnails, -1 to 1; brightness and contrast don't matter."""
    a, b = a_HW - a_HW.mean(), b_HW - b_HW.mean()
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-9))


def neighbours(
    queries: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64], distance: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Index pairs (query, other) whose hashes differ in at most ``distance`` (0 to 7) bits; hash 0 matches nothing.

    By pigeonhole: of four 16-bit bands one differs in no bit up to distance 3, in at most one bit up to distance 7.
    So each band is looked up in a sorted list of the others', as it is and, above 3, with each of its bits flipped.
    """
    assert 0 <= distance <= 7
    flips = [0, *(1 << bit for bit in range(16))] if distance > 3 else [0]
    found: list[npt.NDArray[np.int64]] = []
    for band in range(4):
        keys = (others >> np.uint64(16 * band)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for flip in flips:
            wanted = (queries >> np.uint64(16 * band)).astype(np.uint16) ^ np.uint16(flip)
            first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            counts = last - first
            query = np.repeat(np.arange(len(queries)), counts)
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            other = order[np.repeat(first, counts) + within]
            close = np.bitwise_count(queries[query] ^ others[other]) <= distance
            close &= (queries[query] != 0) & (others[other] != 0)
            found.append(np.stack([query[close], other[close]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]
