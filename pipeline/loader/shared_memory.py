"""Memory that a process shares with the workers it forks: images get from one to the other without a copy."""

import math
import mmap
import weakref
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.core.errors import UserError
from pipeline.imaging.jpeg import Image

_LENT = 3  # batches that may be in use at once: the one being computed, the one before, and the one fetched for next


class Slots:
    """Room for the images of ``ahead`` batches under way in workers, and of those that have been taken and are in use.

    torch would make a file in /dev/shm for each tensor of each batch, whose pages the kernel finds and clears anew:
    that costs more than the resize. This is one piece, used again and again, and isn't counted against /dev/shm, of
    which containers have 64 MB.
    """

    def __init__(self, ahead: int, batch: int, size: int) -> None:
        shape = (ahead + 1 + _LENT, batch, size, size, 3)  # 1: the next batch is asked for when one has come
        try:
            memory = mmap.mmap(-1, math.prod(shape))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"{shape[0]} batches of {batch:,} images of {size} px take {math.prod(shape) / 1e9:,.0f} GB, more than "
                "this machine's memory: make the batch smaller (train.micro_batch, train.eval_batch; --batch)"
            ) from error
        self._images_SBHWC = np.frombuffer(memory, np.uint8).reshape(shape)
        self._free = list(range(len(self._images_SBHWC)))
        self._lent: set[int] = set()

    def __getitem__(self, slot: int) -> Image:
        """A slot, to be filled: uint8, BHWC."""
        images_BHWC: Image = self._images_SBHWC[slot]
        return images_BHWC

    def claim(self, indices: range) -> Iterator[tuple[int, int]]:
        """Each of ``indices`` with a slot for it, free when it is asked for."""
        for index in indices:
            yield index, self._free.pop()  # the one freed last: it may still be in the processor's cache

    def taken(self, slot: int, count: int) -> torch.Tensor:
        """The first ``count`` images of a slot, which is free again when nothing refers to them any more.

        Where there is a GPU, or too many batches are in use already, they are a copy (pinned for the GPU).
        """
        images_BHWC = self[slot][:count]
        if torch.cuda.is_available() or len(self._lent) >= _LENT:
            images = torch.from_numpy(images_BHWC)
            copy = images.pin_memory() if torch.cuda.is_available() else images.clone()
            self._free.append(slot)
            return copy
        self._lent.add(slot)
        weakref.finalize(images_BHWC, self._returned, slot).atexit = False
        return torch.from_numpy(images_BHWC)

    def _returned(self, slot: int) -> None:
        self._free.append(slot)  # before another thread may lend one more
        self._lent.discard(slot)
