"""Hidden states → logits by a model's own code, and the loss of them without the logits of all rows at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from dlm.types import LossOutput

# Logits of a chunk, in float32; about four times that is needed at a time. On a CPU just above what glibc gives back to
# the system (32 MiB): below, freed memory stays with the process.
CHUNK_BYTES = {"cpu": 34 * 2**20, "cuda": 2**30}

ChunkLoss = Callable[[Tensor, slice], LossOutput]


class Hidden(BaseModelOutputWithPast):
    """What a decoder returns, with None for all that one of its kind might add (router logits, cross attentions)."""

    def __getattr__(self, name: str) -> None:
        return None


class Given(nn.Module):
    """In the place of a decoder: its hidden states are given."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Hidden:
        return Hidden(last_hidden_state=inputs_embeds)


def without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, its modules shared, that takes the decoder's hidden states as `inputs_embeds`: the head and what
    the model does after it (soft-capping, scaling) remain the model's own code."""
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    head = node = copy.copy(model)
    *holders, last = path.split(".")
    for name in holders:
        node._modules = node._modules | {name: copy.copy(node._modules[name])}
        node = node._modules[name]
    node._modules = node._modules | {last: Given()}
    return head


def chunk_bytes(device: torch.device) -> int:
    """The bytes of a chunk's logits."""
    return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])


def chunked(value: ChunkLoss, hidden: Float[Tensor, "N D"], linear: nn.Linear, row_bytes: int) -> LossOutput:
    """The sum of `value(hidden[chunk], chunk)` over chunks of rows; `linear` is the output embedding that the loss goes
    through, and a row has logits of `row_bytes` bytes.

    The gradients are made chunk by chunk in the forward, so that no logits outlive their chunk and none are computed
    twice. They are exact: a loss is a sum over rows.
    """
    rows = max(chunk_bytes(hidden.device) // row_bytes, 1)
    chunks = [slice(start, start + rows) for start in range(0, max(len(hidden), 1), rows)]
    if not torch.is_grad_enabled():
        parts = [value(hidden[chunk], chunk) for chunk in chunks]
        return LossOutput(torch.stack([p.loss for p in parts]).sum(), torch.cat([p.nll for p in parts]))
    loss, nll = GradientsInForward.apply(value, chunks, linear, hidden, linear.weight, linear.bias)
    return LossOutput(loss, nll)


class GradientsInForward(torch.autograd.Function):
    """Computes the gradients of a sum of losses beside the losses; the backward only scales them.

    Autograd goes from a chunk's loss to its logits. The rest is the backward of a linear map, by hand, because autograd
    would make a gradient of the whole output embedding for every chunk before adding it up.
    """

    @staticmethod
    def forward(ctx, value: ChunkLoss, chunks: list[slice], linear: nn.Linear, hidden: Tensor, *parameters):
        total, nll, of_hidden = 0.0, [], []
        of_weight, of_bias = (zeros(p) for p in parameters)
        for chunk in chunks:
            rows = hidden[chunk]
            with torch.enable_grad(), leaf_of(linear) as leaves:
                output = value(rows, chunk)
            of_logits = torch.autograd.grad(output.loss, leaves)[0].flatten(0, -2)
            of_hidden.append((of_logits @ linear.weight).to(hidden.dtype))
            if of_weight is not None:
                add_product(of_weight, of_logits.T, rows)
            if of_bias is not None:
                of_bias += of_logits.sum(0)
            nll.append(output.nll)
            total = total + output.loss.detach()
        # Kept as values, not as saved tensors, so that the backward may scale them where they are.
        sums = (s if s is None else s.to(p.dtype) for s, p in zip((of_weight, of_bias), parameters, strict=True))
        ctx.gradients = [torch.cat(of_hidden), *sums]
        nll = torch.cat(nll)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx, scale: Tensor, _):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss in chunks has one backward: its gradients are made in the forward")
        return None, None, None, *(None if g is None else g.mul_(scale) for g in gradients)


@contextmanager
def leaf_of(linear: nn.Linear) -> Iterator[list[Tensor]]:
    """What the linear map gives meanwhile, as if it were given: what follows has gradients up to there. What is
    computed without gradients stays as it is."""
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].view_as(output)  # counters hang hooks on what a module returns, and a leaf takes none

    hook = linear.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        hook.remove()


def zeros(parameter: Tensor | None) -> Tensor | None:
    """Room for a sum of gradients, wide enough for small summands; None where there is no gradient."""
    if parameter is None or not parameter.requires_grad:
        return None
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def add_product(total: Float[Tensor, "V D"], a: Float[Tensor, "V M"], b: Float[Tensor, "M D"]) -> None:
    """`total += a @ b`, without the product in memory where types allow it."""
    if total.dtype == a.dtype == b.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
