import numpy as np
import numpy.typing as npt

def size(jpeg: bytes, /) -> tuple[int, int]: ...
def decode(
    jpeg: bytes, denominator: int, top: int, left: int, height: int, width: int, out: npt.NDArray[np.uint8], /
) -> tuple[int, int, int]: ...
