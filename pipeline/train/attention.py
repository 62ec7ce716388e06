"""Which of torch's kernels computes the attention (train.attention), and when a step is repeated with another."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.config.schema import Attention
from pipeline.core.errors import UserError

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_ON_CPUS = ("auto", "flash", "math")
CUDNN_FIRST = (9, 0)  # compute capability from which torch prefers cuDNN's kernel: Hopper


def kernel(choice: Attention) -> AbstractContextManager[None]:
    """Compute attention by the kernel ``choice`` alone inside this context; auto: torch chooses."""
    return nullcontext() if choice == "auto" else sdpa_kernel(_BACKENDS[choice])


def check_kernel(choice: Attention, device: torch.device) -> None:
    """Raise UserError if ``device`` has no such kernel."""
    if device.type == "cpu" and choice not in _ON_CPUS:
        raise UserError(f"train.attention {choice} needs a GPU, and this rank has none: set {', '.join(_ON_CPUS)}")


def may_be_cudnn(choice: Attention, device: torch.device) -> bool:
    """Whether torch may choose cuDNN's kernel, whose backward pass has returned NaN (pytorch issue 196678)."""
    return (
        choice == "auto"
        and device.type == "cuda"
        and torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
        and torch.cuda.get_device_capability(device) >= CUDNN_FIRST
    )
