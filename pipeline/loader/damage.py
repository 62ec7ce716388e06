"""A sample that can't be decoded, as a data loader worker reports it. Imports no torch."""

from typing import NamedTuple


class Damage(NamedTuple):
    """A sample that can't be decoded."""

    sample: int  # row
    shard: str
    offset: int  # of the JPEG in the shard, bytes
    reason: str  # no_jpeg, undecodable or shard_cut
    detail: str

    def __str__(self) -> str:
        return f"sample {self.sample} ({self.shard}, byte {self.offset}): {self.detail}"
