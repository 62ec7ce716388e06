"""Special handling on CPUs: attention in bfloat16, and keeping freed memory.

All of it is for speed; docs/results.md has the figures. Everything else is torch's own on every device.
"""

import ctypes
import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_SCORED = 256  # tokens; the scores of longer sequences would take more memory than everything else
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def attend(q_BNLK: Tensor, k_BNLK: Tensor, v_BNLK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, by torch's kernel, except for bfloat16 on a CPU.

    There, plain matrix products take half the time of torch's kernel, forward and backward together. Their scores are
    rounded to bfloat16 before the softmax, so errors are twice as large (0.4 % instead of 0.2 %).
    """
    if q_BNLK.device.type != "cpu" or q_BNLK.dtype != torch.bfloat16 or q_BNLK.shape[2] > MOST_SCORED:
        return F.scaled_dot_product_attention(q_BNLK, k_BNLK, v_BNLK)
    # bmm (three dimensions) has a kernel of its own
    q_GLK, k_GLK, v_GLK = (x_BNLK.flatten(0, 1) for x_BNLK in (q_BNLK / math.sqrt(q_BNLK.shape[3]), k_BNLK, v_BNLK))
    y_GLK = torch.bmm(torch.bmm(q_GLK, k_GLK.transpose(1, 2)).softmax(-1), v_GLK)
    return y_GLK.reshape(q_BNLK.shape)


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks in this process; does nothing with another allocator or system.

    By default it returns every large block to the kernel when it is freed, so each step's activations are in new,
    zeroed pages, which costs a twentieth to a sixth of a step. Now memory use stays at its peak instead.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # read as the largest size_t
