"""How a process that computes on a CPU keeps the memory it frees."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks; does nothing under another allocator or system.

    By default it hands every large block back to the kernel when it is freed, so that each step's activations are new,
    zeroed pages: a twentieth to a sixth of a step (docs/results.md). Memory stays at its peak instead.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # read as the largest size_t
