"""Memory that a process shares with its forked workers, to pass images without pickling."""

import math
import mmap
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.core.errors import UserError
from pipeline.imaging.jpeg import Image


class Slots:
    """A ring of slots for the images of ``ahead`` batches in preparation and of the batch that has arrived.

    torch would create a file in /dev/shm for each tensor of each batch, and the kernel would allocate and clear its
    pages each time, which costs more than the resize. This is one block that is reused, and it doesn't count against
    /dev/shm, of which containers have 64 MB.
    """

    def __init__(self, ahead: int, batch: int, size: int) -> None:
        shape = (ahead + 1, batch, size, size, 3)  # 1: the next batch is asked for when one has come
        try:
            memory = mmap.mmap(-1, math.prod(shape))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{shape[0]} batches of {batch:,} images of {size} px take {math.prod(shape) / 1e9:,.0f} GB, more than "
                "this machine's memory: make the batch smaller (train.micro_batch, train.eval_batch; --batch)"
            ) from error
        self._images_SBHWC = np.frombuffer(memory, np.uint8).reshape(shape)

    def __getitem__(self, slot: int) -> Image:
        """A slot to fill: uint8, BHWC."""
        images_BHWC: Image = self._images_SBHWC[slot]
        return images_BHWC

    def claim(self, indices: range) -> Iterator[tuple[int, int]]:
        """Each of ``indices`` with its slot, asked for when the slot's batch before has been copied out."""
        return ((index, index % len(self._images_SBHWC)) for index in indices)

    def copy_out(self, slot: int, count: int) -> torch.Tensor:
        """A copy of the first ``count`` images of a slot; if there is a GPU, in pinned memory, which torch keeps.

        The next batch may be asked for after it. A copy into memory that the process has used before (torch's pinned
        blocks, pipeline.model.cpu.keep_freed_memory) takes a few percent of the time that decoding the images does.
        """
        images_BHWC = self[slot][:count]
        if torch.cuda.is_available():
            return torch.from_numpy(images_BHWC).pin_memory()
        return torch.from_numpy(images_BHWC.copy())  # not clone: torch's idle threads would spin after it
