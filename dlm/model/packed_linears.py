"""Linear maps with weights in the layout of a CPU's kernel, so that a few rows cost little more than one.

The CPU kernel of torch reads a float32 weight once for one row, but first copies all of it for two rows or more, so
that a denoising step of a block would cost several AR steps. oneDNN copies it only once, in advance (`torch.compile`
does the same to frozen weights).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn

MIN_ELEMENTS = 2**17  # of a weight; for smaller ones, calling the kernel costs more than the product of a few rows
MEMORY = 0.5  # the largest fraction of the free memory that the copies may take

Forward = Callable[[Tensor], Tensor]


class PackedLinears(AbstractContextManager):
    """A context in which the large linear maps of a model on a CPU use packed copies of their weights, when they
    compute without gradients. Results are equal up to rounding, since sums run in another order.

    The constructor makes the copies, which take as much memory as the weights. If half of the free memory does not hold
    them, nothing is packed, with a warning. Modules on other devices, of types that oneDNN lacks (float64), of
    subclasses of `nn.Linear`, or with a replaced forward are not packed either. Weights must not change while this
    object exists.
    """

    def __init__(self, model: nn.Module):
        linears = [m for m in model.modules() if packable(m)]
        needed, free = sum(m.weight.nbytes for m in linears), psutil.virtual_memory().available
        fits = needed <= MEMORY * free
        if not fits:
            warnings.warn(
                f"a denoising step will take longer than it could: packed copies of the weights are {needed / 1e9:.1f} "
                f"GB, more than {MEMORY:.0%} of the {free / 1e9:.1f} GB that are free",
                stacklevel=2,
            )
        self.forwards: dict[nn.Linear, Forward] = {m: packed(m) for m in linears} if fits else {}

    def __enter__(self) -> PackedLinears:
        for linear, forward in self.forwards.items():
            linear.forward = forward
        return self

    def __exit__(self, *_: object) -> None:
        for linear in self.forwards:
            vars(linear).pop("forward", None)


def packable(module: nn.Module) -> bool:
    """Whether oneDNN has a kernel for this module, and the module is large enough to profit from it."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    if module.weight.device.type != "cpu" or module.weight.numel() < MIN_ELEMENTS:
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    dtype = module.weight.dtype
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(linear: nn.Linear) -> Forward:
    """The forward of a linear map with a packed copy of its weight. With gradients or for inputs of another type, which
    the kernel does not support, it is the plain forward."""
    plain, dtype = linear.forward, linear.weight.dtype
    weight, bias = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()), linear.bias

    def forward(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        if torch.is_grad_enabled() or x.dtype != dtype:
            return plain(x)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    return forward
