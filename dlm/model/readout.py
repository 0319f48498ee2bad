"""The loss of scored rows without holding the logits of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dlm.types import LossOutput

# Logits of a chunk, in float32; the peak is about four times that. On a CPU just above 32 MiB: glibc does not return
# smaller freed blocks to the system.
CHUNK_BYTES = {"cpu": 34 * 2**20, "cuda": 2**30}

ChunkLoss = Callable[[Tensor, slice], LossOutput]


def chunk_bytes(device: torch.device) -> int:
    """The bytes of a chunk's logits."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])


def chunked(loss_of: ChunkLoss, hidden: Float[Tensor, "N D"], linear: nn.Linear, row_bytes: int) -> LossOutput:
    """The sum of `loss_of(hidden[chunk], chunk)` over chunks of rows. `linear` is the output embedding, and the logits
    of a row take `row_bytes` bytes.

    The gradients are computed chunk by chunk in the forward, so that no logits outlive their chunk and none are
    computed twice. They are exact, since a loss is a sum over rows.
    """
    chunk_size = max(chunk_bytes(hidden.device) // row_bytes, 1)
    chunks = [slice(start, start + chunk_size) for start in range(0, max(len(hidden), 1), chunk_size)]
    if not torch.is_grad_enabled():
        outputs = [loss_of(hidden[chunk], chunk) for chunk in chunks]
        return LossOutput(torch.stack([o.loss for o in outputs]).sum(), torch.cat([o.nll for o in outputs]))
    loss, nll = GradientsInForward.apply(loss_of, chunks, linear, hidden, linear.weight, linear.bias)
    return LossOutput(loss, nll)


class GradientsInForward(torch.autograd.Function):
    """Computes the gradients of a sum of losses together with the losses; the backward only scales them.

    Autograd computes the gradient of a chunk's loss with respect to its logits. The rest, the backward of a linear map,
    is written out here, because autograd would allocate a gradient of the whole output embedding for every chunk.
    """

    @staticmethod
    def forward(ctx, loss_of: ChunkLoss, chunks: list[slice], linear: nn.Linear, hidden: Tensor, *parameters):
        total, nll, grad_hidden = 0.0, [], []
        grad_weight, grad_bias = (zeros(p) for p in parameters)
        for chunk in chunks:
            rows = hidden[chunk]
            with torch.enable_grad(), output_as_leaf(linear) as leaves:
                output = loss_of(rows, chunk)
            grad_logits = torch.autograd.grad(output.loss, leaves)[0].flatten(0, -2)
            grad_hidden.append((grad_logits @ linear.weight).to(hidden.dtype))
            if grad_weight is not None:
                add_product(grad_weight, grad_logits.T, rows)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            nll.append(output.nll)
            total = total + output.loss.detach()
        # Plain attributes, not saved tensors, so that the backward may scale them in place.
        sums = (s if s is None else s.to(p.dtype) for s, p in zip((grad_weight, grad_bias), parameters, strict=True))
        ctx.gradients = [torch.cat(grad_hidden), *sums]
        nll = torch.cat(nll)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx, scale: Tensor, _):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss in chunks has one backward: its gradients are computed in the forward")
        return None, None, None, *(None if g is None else g.mul_(scale) for g in gradients)


@contextmanager
def output_as_leaf(linear: nn.Linear) -> Iterator[list[Tensor]]:
    """A context in which the outputs of a linear map are leaves of the graph, so that gradients end there. Yields the
    list of these leaves. Outputs that are computed without gradients are unchanged."""
    leaves: list[Tensor] = []

    def detach(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].view_as(output)  # FLOP counters put hooks on a module's output, which a leaf does not take

    hook = linear.register_forward_hook(detach)
    try:
        yield leaves
    finally:
        hook.remove()


def zeros(parameter: Tensor | None) -> Tensor | None:
    """Zeros for a sum of gradients, at least in float32; None if the parameter needs no gradient."""
    if parameter is None or not parameter.requires_grad:
        return None
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def add_product(total: Float[Tensor, "V D"], a: Float[Tensor, "V M"], b: Float[Tensor, "M D"]) -> None:
    """`total += a @ b`, without allocating the product if all types are equal."""
    if total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
