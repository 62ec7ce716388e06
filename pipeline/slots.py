"""Memory that a process shares with the workers it forks: images get from one to the other without being sent."""

import math
import mmap

import numpy as np
import torch

from pipeline.jpeg import Image


class Slots:
    """Room for the images of each batch under way: batch ``index`` lies in slot ``index`` modulo their number.

    torch would make a file in /dev/shm for each tensor of each batch, whose pages the kernel finds and clears anew:
    that costs more than the resize. This is one piece, used again and again, and isn't counted against /dev/shm, of
    which containers have 64 MB.
    """

    def __init__(self, slots: int, batch: int, size: int) -> None:
        shape = (slots, batch, size, size, 3)
        self._images_SBHWC = np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)

    def __getitem__(self, index: int) -> Image:
        """The slot of a batch, to be filled: uint8, BHWC."""
        images_BHWC: Image = self._images_SBHWC[index % len(self._images_SBHWC)]
        return images_BHWC

    def taken(self, index: int, count: int) -> torch.Tensor:
        """A copy of the first ``count`` images of a batch, pinned where there is a GPU. The slot is free again."""
        images_BHWC = torch.from_numpy(self[index][:count])
        return images_BHWC.pin_memory() if torch.cuda.is_available() else images_BHWC.clone()
