"""What is done otherwise on CPUs (pipeline/model/cpu.py): bfloat16 attention is right, freed memory is used again."""

import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.cpu import attend

STEPS = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from pipeline.model.cpu import keep_freed_memory
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


def test_bfloat16_attention_on_a_cpu_is_right_but_for_rounding() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, 3, 197, 64, generator=generator).bfloat16() for _ in range(4)]

    def with_gradients(kernel: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        *qkv, grad = (tensor.to(dtype, copy=True) for tensor in inputs)
        y_BNLK = kernel(*(tensor.requires_grad_() for tensor in qkv))
        y_BNLK.backward(grad)
        return [y_BNLK.detach(), *(tensor.grad for tensor in qkv if tensor.grad is not None)]

    exact = with_gradients(F.scaled_dot_product_attention, torch.float64)
    for found, right in zip(with_gradients(attend, torch.bfloat16), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - right).norm() < 2 * 2**-8 * right.norm()  # bfloat16's epsilon, of scores and of results
