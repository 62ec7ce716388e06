"""Types of NumPy arrays that hold positions, row numbers and hashes."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
