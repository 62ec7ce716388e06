"""A reader with one worker, in a process that a test kills: python -m tests.dataset.piped_reader PIPE."""

import sys

from torch.utils.data import Dataset

from pipeline.core.retry import Patience
from pipeline.dataset import urls
from pipeline.loader.workers import load, slots_for


class Piped(Dataset[bytes]):
    def __init__(self, pipe: str):
        self.pipe = pipe

    def __getitem__(self, item: tuple[int, int]) -> bytes:
        return b"".join(urls.read_blocks(self.pipe, 9, Patience()))


if __name__ == "__main__":
    list(load(Piped(sys.argv[1]), range(1), slots_for(range(1), 1, 1, 8), 1))
