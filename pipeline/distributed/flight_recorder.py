"""torch's flight recorder: each rank's last collectives, kept when a job hangs, to show which rank missed which.

``torchfrtrace RUN/collectives --prefix rank-`` compares the ranks' files, which are torch's own pickles.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import torch._C._distributed_c10d as c10d

PREFIX = "rank-"  # of the file names; the rank follows


def recorder_variables(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """torch's variables (FlightRecorder.hpp, ProcessGroupNCCL.hpp of 2.13) with which NCCL's timeout writes the files.

    Values in ``environment`` win. The recorder itself is on by default, for gloo as well.
    """
    found: dict[str, str] = {}
    for names, value in (
        (("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"), "2000"),  # collectives that are kept in memory
        (("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"), str(folder.absolute() / PREFIX)),
        (("TORCH_NCCL_DUMP_ON_TIMEOUT",), "1"),
    ):
        if not any(name in environment for name in names):  # two names of one setting: the second is the older
            found |= dict.fromkeys(names, value)
    return found


def dump_collectives(folder: Path, rank: int) -> None:
    """Write this rank's last collectives with their Python stacks. Errors here are ignored."""
    dump = getattr(c10d, "_dump_nccl_trace", None) or c10d._dump_fr_trace  # type: ignore[attr-defined]
    with contextlib.suppress(OSError, RuntimeError):
        folder.mkdir(exist_ok=True)
        (folder / f"{PREFIX}{rank}").write_bytes(dump(includeCollectives=True, includeStackTraces=True))
