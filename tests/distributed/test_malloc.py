"""Memory that a step frees serves the next one (pipeline/distributed/malloc.py), measured in a process of its own."""

import subprocess
import sys

STEPS = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from pipeline.distributed.malloc import keep_freed_memory
    keep_freed_memory()
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(1 << 24) for _ in range(2)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages_a_step(mode: str) -> int:
    command = [sys.executable, "-c", STEPS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


def test_a_step_takes_no_new_pages() -> None:
    assert new_pages_a_step("let go") > 10_000  # two tensors of 64 MiB
    assert new_pages_a_step("keep") < 1_000
