"""What a step minimises: the diffusion loss of the scored tokens and the auxiliary losses beside it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.auxiliary.base import Auxiliary
from dlm.loss.base import Loss
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, LossOutput, Movable, Noised, Prepared, Scored


class Objective:
    """`loss` + the sum of weight times auxiliary loss, all from one forward of the network."""

    def __init__(self, loss: Loss, auxiliary: dict[str, Auxiliary] | None = None):
        self.loss, self.auxiliary = loss, auxiliary or {}
        self.reads_states = any(term.reads_states for term in self.auxiliary.values())
        self.balanced = any(term.balanced for term in self.auxiliary.values())

    @property
    def nbytes(self) -> int:
        """What the auxiliary losses hold on the device all the time, in bytes."""
        return sum(term.nbytes for term in self.auxiliary.values())

    def needs(
        self, denoiser: Denoiser, batch: Batch, noised: Noised, scored: Scored
    ) -> tuple[list[Int[Tensor, " M"]], dict[str, Movable | None]]:
        """What the auxiliary losses need of a batch (on the CPU): more rows of the network's input, and the rest."""
        rows: list[Int[Tensor, " M"]] = []
        needs: dict[str, Movable | None] = {}
        for name, term in self.auxiliary.items():
            more, needs[name] = term.needs(denoiser, batch, noised, scored)
            if more is not None:
                rows.append(more)
        return rows, needs

    def __call__(
        self, denoiser: Denoiser, prepared: Prepared, factors: dict[str, float | Float[Tensor, ""]] | None = None
    ) -> tuple[LossOutput, dict[str, Float[Tensor, ""]]]:
        """The whole loss, and the auxiliary losses by their names, unweighted. `factors` are what these are multiplied
        by, if not by what this batch alone says: it may be a piece of another."""
        output, found, of_states = self.terms(denoiser, prepared)
        total = output.loss
        for name, value in of_states.items():
            factor = self.auxiliary[name].factor(value, output.loss) if factors is None else factors[name]
            total = total + factor * value
        return LossOutput(total, output.nll), found

    def terms(
        self, denoiser: Denoiser, prepared: Prepared
    ) -> tuple[LossOutput, dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
        """The loss of the scored tokens' logits; the auxiliary losses, detached; and those of hidden states, which are
        still to be multiplied and added."""
        num, num_tokens = len(prepared.scored.target), prepared.num_tokens
        states = denoiser.states(prepared.inputs) if self.reads_states else [denoiser.read(prepared.inputs)]
        found = {name: torch.zeros((), device=states[-1].device) for name in self.auxiliary}
        rowwise = {}
        for name, term in self.auxiliary.items():
            of_logits = term.of_logits(denoiser, states[-1][:num], prepared.scored, prepared.needs[name])
            if of_logits is not None:
                rowwise[name] = of_logits

        def part(logits: Float[Tensor, "M V"], chunk: slice) -> LossOutput:
            output = self.loss(logits, prepared.scored[chunk], num_tokens)
            total = output.loss
            for name, of_logits in rowwise.items():
                value = of_logits(logits, chunk).sum() / num_tokens
                found[name] = found[name] + value.detach()
                total = total + self.auxiliary[name].weight * value
            return LossOutput(total, output.nll)

        output = denoiser.loss_of(states[-1][:num], part)
        of_states, start = {}, num
        for name, term in self.auxiliary.items():
            stop = start + term.num_rows(prepared.needs[name])
            value = term.of_states(denoiser, states, slice(start, stop), num_tokens, prepared.needs[name])
            start = stop
            if value is not None:
                of_states[name], found[name] = value, value.detach()
        return output, found, of_states
