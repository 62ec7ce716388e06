import numpy as np
import numpy.typing as npt

def decode(
    jpeg: bytes,
    denominator: int,
    top: int,
    left: int,
    height: int,
    width: int,
    out: npt.NDArray[np.uint8],
    check: bool = False,
    /,
) -> tuple[int, int, int, bool]: ...
def is_sound(jpeg: bytes, /) -> bool: ...
def library() -> str: ...
