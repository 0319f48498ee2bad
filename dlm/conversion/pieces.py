"""Computes a micro-batch in pieces of rows, one after the other, when it does not fit into memory as a whole.

Noise is drawn for the whole micro-batch, and a loss is a sum over rows, so pieces change only the order of summation.
(Dropout is drawn for every piece: other draws of the same distribution.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.conversion.objective import Objective
from dlm.conversion.prepare import lay_out
from dlm.model.denoiser import Denoiser
from dlm.model.layout import Layout
from dlm.types import Batch, LossOutput, Noised, Prepared

Values = TypeVar("Values", Batch, Noised)


def lay_out_pieces(layout: Layout, batch: Batch, noised: Noised, objective: Objective, pieces: int) -> list[Prepared]:
    """Lay out a corrupted batch of B rows for the network, in at most `pieces` pieces of equally many rows (the last
    may have fewer)."""
    rows = rows_of_piece(len(batch.x0), pieces)
    slices = [slice(start, start + rows) for start in range(0, len(batch.x0), rows)]
    return [lay_out(layout, slice_rows(batch, part), slice_rows(noised, part), objective) for part in slices]


def rows_of_piece(rows: int, pieces: int) -> int:
    """The rows of each piece but the last, ⌈rows / pieces⌉."""
    return -(-rows // pieces)


def slice_rows(values: Values, rows: slice) -> Values:
    """The rows `rows` of every tensor of a batch."""
    tensors = (getattr(values, f.name) for f in fields(values))
    return type(values)(*(None if tensor is None else tensor[rows] for tensor in tensors))


def loss_of(
    objective: Objective, denoiser: Denoiser, pieces: Sequence[Prepared]
) -> tuple[LossOutput, dict[str, Float[Tensor, ""]]]:
    """The loss of a micro-batch and its unweighted auxiliary losses by name: the mean over its pieces, weighted by
    their tokens."""
    if len(pieces) == 1:
        return objective(denoiser, pieces[0])
    num_tokens = sum(piece.num_tokens for piece in pieces)
    shares = [piece.num_tokens / num_tokens for piece in pieces]
    factors = auxiliary_factors(objective, denoiser, pieces, shares)
    nll: list[Tensor] = []
    auxiliary = dict.fromkeys(objective.auxiliary, 0.0)

    def piece_loss(piece: Prepared, share: float) -> Float[Tensor, ""]:
        output, values = objective(denoiser, piece, factors)
        nll.append(output.nll)
        for name, value in values.items():
            auxiliary[name] = auxiliary[name] + share * value
        return share * output.loss

    parameters = [p for p in denoiser.model.parameters() if p.requires_grad]
    loss = SequentialSum.apply(piece_loss, list(zip(pieces, shares, strict=True)), *parameters)
    return LossOutput(loss, torch.cat(nll)), auxiliary


@torch.no_grad()
def auxiliary_factors(
    objective: Objective, denoiser: Denoiser, pieces: Sequence[Prepared], shares: Sequence[float]
) -> dict[str, float | Float[Tensor, ""]]:
    """The factors of the auxiliary losses by name. If a factor depends on the losses, it is computed from those of the
    whole micro-batch, which costs one more forward of every piece."""
    if not objective.balanced:
        return {name: term.weight for name, term in objective.auxiliary.items()}
    diffusion, values = 0.0, dict.fromkeys(objective.auxiliary, 0.0)
    for piece, share in zip(pieces, shares, strict=True):
        output, auxiliary, _ = objective.terms(denoiser, piece)
        diffusion = diffusion + share * output.loss
        values = {name: values[name] + share * value for name, value in auxiliary.items()}
    return {name: term.factor(values[name], diffusion) for name, term in objective.auxiliary.items()}


class SequentialSum(torch.autograd.Function):
    """The sum of several losses. The forward computes each loss and its gradients before the next, which frees its
    activations; the backward only scales the summed gradients."""

    @staticmethod
    def forward(ctx, loss_of: Callable[..., Tensor], arguments: list[tuple], *parameters: Tensor) -> Tensor:
        total, sums = 0.0, [None] * len(parameters)
        for args in arguments:
            with torch.enable_grad():
                loss = loss_of(*args)
            with torch.autocast(loss.device.type, enabled=False):  # autocast is for forwards only
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = total + loss.detach()
            sums = [b if a is None else a if b is None else a.add_(b) for a, b in zip(sums, gradients, strict=True)]
            del loss, gradients
        ctx.gradients = sums
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("a loss in pieces has one backward: its gradients are made in the forward")
        return None, None, *(None if g is None else g.mul_(scale) for g in gradients)
