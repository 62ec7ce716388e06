import numpy as np
import numpy.typing as npt

def resize(
    image: npt.NDArray[np.uint8], top: float, left: float, bottom: float, right: float, out: npt.NDArray[np.uint8], /
) -> None: ...
