"""RUN/damage.tsv: each damaged sample that was replaced by another one. Written by rank 0.

A resumed run repeats the steps since its checkpoint; damage in repeated steps counts once. Imports no torch.
"""

from collections import Counter
from pathlib import Path

from pipeline.loader.damage import Damage
from pipeline.runs.folder import DAMAGE

_NAMED = 5  # shards named in a summary


class Damages:
    """The damage that all ranks of a run have met up to ``step``."""

    def __init__(self, run_dir: Path, step: int):
        self._path = run_dir / DAMAGE
        self._met: dict[tuple[int, int], Damage] = {}  # by step and sample
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.is_file() else ():
            fields = line.rstrip("\n").split("\t")
            if line.endswith("\n") and len(fields) == 6 and int(fields[0]) <= step:
                at, sample, shard, offset, reason, detail = fields
                self._met[int(at), int(sample)] = Damage(int(sample), shard, int(offset), reason, detail)

    def see(self, step: int, found: list[Damage]) -> list[Damage]:
        """Record the damage of ``step``; returns the samples that are new."""
        known = self.samples
        with self._path.open("a", encoding="utf-8") as file:
            for item in found:
                self._met[step, item.sample] = item
                print(step, *(" ".join(str(field).split()) for field in item), sep="\t", file=file)
        return list({item.sample: item for item in found if item.sample not in known}.values())

    @property
    def samples(self) -> dict[int, Damage]:
        """Each damaged sample once."""
        return {item.sample: item for item in self._met.values()}

    def metrics(self) -> dict[str, float]:
        reasons = Counter(item.reason for item in self.samples.values())
        return {
            "damage/samples": float(len(self.samples)),
            "damage/met": float(len(self._met)),
            **{f"damage/{reason}": float(count) for reason, count in reasons.items()},
        }

    def summary(self) -> str:
        """One line with counts by reason and shard; empty if there was no damage."""
        samples = self.samples.values()
        if not samples:
            return ""
        reasons = Counter(item.reason for item in samples).most_common()
        shards = Counter(item.shard for item in samples).most_common()
        worst = ", ".join(f"{shard} {count}" for shard, count in shards[:_NAMED])
        more = f" and {len(shards) - _NAMED} more shards" if len(shards) > _NAMED else ""
        return (
            f"{len(samples)} samples can't be decoded, replaced {len(self._met)} times: "
            f"{', '.join(f'{count} {reason}' for reason, count in reasons)}; in {worst}{more}"
        )
