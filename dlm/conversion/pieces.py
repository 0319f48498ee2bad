"""A micro-batch computed in pieces of rows, one after the other, where the whole does not fit into memory.

The noise is that of the whole micro-batch, and a loss is a sum over rows, so the pieces change nothing but the order of
summation. (Dropout draws for every piece anew: other draws of the same distribution.)
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
from dlm.types import Batch, LossOutput, Noised, Prepared

Values = TypeVar("Values", Batch, Noised)


def lay_out_pieces(
    denoiser: Denoiser, batch: Batch, noised: Noised, objective: Objective, pieces: int
) -> list[Prepared]:
    """A corrupted batch as the network reads it, in at most `pieces` pieces of as many rows each (the last may have
    fewer)."""
    rows = rows_of_piece(len(batch.x0), pieces)
    chosen = [slice(start, start + rows) for start in range(0, len(batch.x0), rows)]
    return [lay_out(denoiser, only(batch, some), only(noised, some), objective) for some in chosen]


def rows_of_piece(rows: int, pieces: int) -> int:
    return -(-rows // pieces)


def only(values: Values, rows: slice) -> Values:
    """Some rows of a batch."""
    found = (getattr(values, f.name) for f in fields(values))
    return type(values)(*(None if value is None else value[rows] for value in found))


def loss_of(
    objective: Objective, denoiser: Denoiser, pieces: Sequence[Prepared]
) -> tuple[LossOutput, dict[str, Float[Tensor, ""]]]:
    """What `objective` says of a micro-batch: the mean of its pieces, by their tokens."""
    if len(pieces) == 1:
        return objective(denoiser, pieces[0])
    num_tokens = sum(piece.num_tokens for piece in pieces)
    shares = [piece.num_tokens / num_tokens for piece in pieces]
    factors = factors_of(objective, denoiser, pieces, shares)
    nll: list[Tensor] = []
    found = dict.fromkeys(objective.auxiliary, 0.0)

    def part(piece: Prepared, share: float) -> Float[Tensor, ""]:
        output, values = objective(denoiser, piece, factors)
        nll.append(output.nll)
        for name, value in values.items():
            found[name] = found[name] + share * value
        return share * output.loss

    parameters = [p for p in denoiser.model.parameters() if p.requires_grad]
    loss = InTurn.apply(part, list(zip(pieces, shares, strict=True)), *parameters)
    return LossOutput(loss, torch.cat(nll)), found


@torch.no_grad()
def factors_of(
    objective: Objective, denoiser: Denoiser, pieces: Sequence[Prepared], shares: Sequence[float]
) -> dict[str, float | Float[Tensor, ""]]:
    """What the auxiliary losses are multiplied by. Where that depends on their value, it is the value of all pieces,
    which costs a forward of each."""
    if not objective.balanced:
        return {name: term.weight for name, term in objective.auxiliary.items()}
    diffusion, values = 0.0, dict.fromkeys(objective.auxiliary, 0.0)
    for piece, share in zip(pieces, shares, strict=True):
        output, found, _ = objective.terms(denoiser, piece)
        diffusion = diffusion + share * output.loss
        values = {name: values[name] + share * value for name, value in found.items()}
    return {name: term.factor(values[name], diffusion) for name, term in objective.auxiliary.items()}


class InTurn(torch.autograd.Function):
    """The sum of losses, each computed with its gradients before the next, so that what one keeps for its backward is
    gone by then. The backward only scales the gradients."""

    @staticmethod
    def forward(ctx, loss_of: Callable[..., Tensor], arguments: list[tuple], *parameters: Tensor) -> Tensor:
        total, sums = 0.0, [None] * len(parameters)
        for given in arguments:
            with torch.enable_grad():
                loss = loss_of(*given)
            with torch.autocast(loss.device.type, enabled=False):  # as everywhere, for the forward only
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
