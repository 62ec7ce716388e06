"""What workers report, counted up for a progress bar."""

import collections
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_prep.process_pool import Report
from pipeline.core.progress import Bar

MOST_REASONS = 4  # named by the bar


@contextmanager
def counting(what: str, total: int, unit: str) -> Iterator[Callable[[Report], None]]:
    """A bar that reports advance: ``images`` (the items), ``bytes``, ``kept`` (shards), and rejects by reason."""
    sums: collections.Counter[str] = collections.Counter()

    def report(counts: Report) -> None:
        sums.update(counts)
        rejects = sums - collections.Counter({name: sums[name] for name in ("images", "bytes", "kept")})
        note = [f"{sums['bytes'] / max(bar.seconds, 1e-9) / 1e6:,.0f} MB/s"] if sums["bytes"] else []
        if rejects:
            reasons = (f"{count} {reason}" for reason, count in rejects.most_common(MOST_REASONS))
            note.append(f"skipped: {', '.join(reasons)}")
        bar.advance(counts.get("images", 0), ", ".join(note))

    with Bar(what, total, unit) as bar:
        yield report
