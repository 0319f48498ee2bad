"""Hidden states → logits by a model's own code, and the loss of them without the logits of all rows at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from dlm.types import LossOutput

# Logits of a chunk, in float32. A backward keeps about four times that; smaller chunks add up more often the gradient
# of the output embedding, which is as large.
CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**30}

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


def chunked(value: ChunkLoss, hidden: Float[Tensor, "N D"], head: nn.Module, row_bytes: int) -> LossOutput:
    """The sum of `value(hidden[chunk], chunk)` over chunks of rows; a row has logits of `row_bytes` bytes.

    The gradients are made chunk by chunk in the forward, so that no logits outlive their chunk and none are computed
    twice. They are exact: a loss is a sum over rows.
    """
    rows = max(chunk_bytes(hidden.device) // row_bytes, 1)
    chunks = [slice(start, start + rows) for start in range(0, max(len(hidden), 1), rows)]
    parameters = [p for p in head.parameters() if p.requires_grad]
    if not torch.is_grad_enabled():
        parts = [value(hidden[chunk], chunk) for chunk in chunks]
        return LossOutput(torch.stack([p.loss for p in parts]).sum(), torch.cat([p.nll for p in parts]))
    loss, nll = GradientsInForward.apply(value, chunks, hidden, *parameters)
    return LossOutput(loss, nll)


class GradientsInForward(torch.autograd.Function):
    """Computes the gradients of a sum of losses beside the losses; the backward only scales them."""

    @staticmethod
    def forward(ctx, value: ChunkLoss, chunks: list[slice], hidden: Tensor, *parameters: nn.Parameter):
        total, nll, of_hidden = 0.0, [], []
        # bfloat16 loses small summands; one chunk is no sum.
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
        for chunk in chunks:
            rows = hidden[chunk].detach().requires_grad_()
            with torch.enable_grad():
                output = value(rows, chunk)
            of_rows, *of_parameters = torch.autograd.grad(output.loss, [rows, *parameters])
            for total_of, part in zip(sums, of_parameters, strict=True):
                total_of += part
            of_hidden.append(of_rows)
            nll.append(output.nll)
            total = total + output.loss.detach()
        # Kept as values, not as saved tensors, so that the backward may scale them where they are.
        ctx.gradients = [torch.cat(of_hidden), *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))]
        nll = torch.cat(nll)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    def backward(ctx, scale: Tensor, _):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "the loss in chunks has one backward: its gradients are made in the forward and given away"
            )
        return None, None, *(gradient.mul_(scale) for gradient in gradients)
