"""Images in memory shared with the workers: copied out before the workers may overwrite them."""

import errno

import pytest
import torch
from torch.utils.data import Dataset

from pipeline.core.errors import UserError
from pipeline.loader.shared_memory import Slots
from pipeline.loader.workers import load, slots_for


class Numbered(Dataset[tuple[int, int]]):
    """Item k: a batch whose every byte is k."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, int]:
        index, slot = item
        self.slots[slot][:] = index
        return index, slot


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kept", [1, 2, 3, 4, 8])
def test_batches_that_are_kept_stay_what_they_were(workers: int, kept: int) -> None:
    indices = range(40)
    slots = slots_for(indices, workers, 2, 8)
    held: list[tuple[int, torch.Tensor]] = []
    for index, slot in load(Numbered(slots), indices, slots, workers):
        held.append((index, slots.copy_out(slot, 2)))
        held = held[-kept:]
        for number, images in held:
            assert images.unique().tolist() == [number]
    assert held[-1][0] == 39


def test_a_batch_that_no_memory_holds_is_named() -> None:
    for batch in (10**12, 10**18):
        with pytest.raises(UserError, match=f"{batch:,} images of 224 px take .* GB.*train.micro_batch.*--batch"):
            Slots(2, batch, 224)


def test_a_system_that_refuses_semaphores_names_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.Lock", refuse)
    slots = slots_for(range(4), 1, 2, 8)
    with pytest.raises(OSError, match="Read-only file system: '/dev/shm'"):
        next(load(Numbered(slots), range(4), slots, 1))
