"""x W^T + b, and on CPUs in float32 the faster of torch's two libraries for each of its products.

torch hands float32 products to MKL and has oneDNN beside it. On an AMD EPYC with AVX-512 oneDNN takes 8 to 14 % less
time for the forward product of a ViT's layers, 3 to 14 % less for the input's gradient, and 3 to 7 % less for the
weight's where a layer narrows (docs/results.md). Evaluation, exports and all other devices and dtypes use torch's own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
LEAST_WORK = 1 << 24  # multiply-accumulates; below, oneDNN's start takes longer than it saves


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """Inputs (..., I) -> outputs (..., O), as :func:`torch.nn.functional.linear`."""
    training = torch.is_grad_enabled() and not (torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu"))
    suits = training and HAS_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
    if suits and x.numel() * weight_OI.shape[0] >= LEAST_WORK:
        y: Tensor = _OneDnn.apply(x, weight_OI, bias_O)  # type: ignore[no-untyped-call]
        return y
    return F.linear(x, weight_OI, bias_O)


class Linear(nn.Linear):
    """torch's, with :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _OneDnn(torch.autograd.Function):
    """The forward product and the input's gradient by oneDNN, the weight's gradient by whichever is faster at it.

    First derivatives only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        y: Tensor = _outputs(x, weight_OI, bias_O)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_OI = ctx.saved_tensors
        g_NO, x_NI = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = _product(g_NO, weight_OI.t()).reshape(x.shape) if ctx.needs_input_grad[0] else None
        narrows = g_NO.shape[1] < x_NI.shape[1]
        dw = None
        if ctx.needs_input_grad[1]:
            dw = _product(g_NO.t(), x_NI.t()) if narrows else g_NO.t() @ x_NI
        return dx, dw, g_NO.sum(0) if ctx.needs_input_grad[2] else None


# Operators of their own, because torch.compile can't take oneDNN's with weights that change, and would copy a weight
# that is handed over transposed.


@torch.library.custom_op("vit_pipeline::outputs", mutates_args=())
def _outputs(x: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return y


@torch.library.custom_op("vit_pipeline::product", mutates_args=())
def _product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """a b^T, contiguous."""
    c_MN: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, None, "none", [], "")
    return c_MN


@_outputs.register_fake
def _(x: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_empty((*x.shape[:-1], weight_OI.shape[0]))


@_product.register_fake
def _(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    return a_MK.new_empty((a_MK.shape[0], b_NK.shape[0]))
