"""The training objective: the diffusion loss of the scored tokens plus weighted auxiliary losses."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.auxiliary.base import Auxiliary
from dlm.loss.base import Loss
from dlm.model.denoiser import Denoiser
from dlm.model.layout import Layout
from dlm.types import Batch, LossOutput, Movable, Noised, Prepared, Scored


class Objective:
    """`loss` + Σ weight · auxiliary loss, all from one forward of the network."""

    def __init__(self, loss: Loss, auxiliary: dict[str, Auxiliary] | None = None):
        self.loss, self.auxiliary = loss, auxiliary or {}
        self.reads_states = any(term.reads_states for term in self.auxiliary.values())
        self.balanced = any(term.balanced for term in self.auxiliary.values())

    @property
    def nbytes(self) -> int:
        """The bytes that the auxiliary losses hold on the device throughout training."""
        return sum(term.nbytes for term in self.auxiliary.values())

    def needs(
        self, layout: Layout, batch: Batch, noised: Noised, scored: Scored
    ) -> tuple[list[Int[Tensor, " M"]], dict[str, Movable | None]]:
        """The inputs of the auxiliary losses for a batch (on the CPU): the additional input rows of the network whose
        hidden states they read, and, by name, anything else."""
        extra_rows: list[Int[Tensor, " M"]] = []
        needs: dict[str, Movable | None] = {}
        for name, term in self.auxiliary.items():
            rows, needs[name] = term.needs(layout, batch, noised, scored)
            if rows is not None:
                extra_rows.append(rows)
        return extra_rows, needs

    def __call__(
        self, denoiser: Denoiser, prepared: Prepared, factors: dict[str, float | Float[Tensor, ""]] | None = None
    ) -> tuple[LossOutput, dict[str, Float[Tensor, ""]]]:
        """The total loss, and the unweighted auxiliary losses by name, detached. `factors` multiply the losses of
        hidden states; by default they follow from this batch, which is wrong if it is a piece of a micro-batch."""
        output, auxiliary, of_states = self.terms(denoiser, prepared)
        total = output.loss
        for name, value in of_states.items():
            factor = self.auxiliary[name].factor(value, output.loss) if factors is None else factors[name]
            total = total + factor * value
        return LossOutput(total, output.nll), auxiliary

    def terms(
        self, denoiser: Denoiser, prepared: Prepared
    ) -> tuple[LossOutput, dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
        """The loss of the scored tokens, including the weighted auxiliary losses of their logits; all auxiliary losses
        by name, detached; and the auxiliary losses of hidden states, which the caller multiplies and adds."""
        num_scored, num_tokens = len(prepared.scored.target), prepared.num_tokens
        states = denoiser.states(prepared.inputs) if self.reads_states else [denoiser.read(prepared.inputs)]
        auxiliary = {name: torch.zeros((), device=states[-1].device) for name in self.auxiliary}
        losses_of_logits = {}
        for name, term in self.auxiliary.items():
            of_logits = term.of_logits(denoiser, states[-1][:num_scored], prepared.scored, prepared.needs[name])
            if of_logits is not None:
                losses_of_logits[name] = of_logits

        def chunk_loss(logits: Float[Tensor, "M V"], chunk: slice) -> LossOutput:
            output = self.loss(logits, prepared.scored[chunk], num_tokens)
            total = output.loss
            for name, of_logits in losses_of_logits.items():
                value = of_logits(logits, chunk).sum() / num_tokens
                auxiliary[name] = auxiliary[name] + value.detach()
                total = total + self.auxiliary[name].weight * value
            return LossOutput(total, output.nll)

        output = denoiser.loss_of(states[-1][:num_scored], chunk_loss)
        of_states, start = {}, num_scored
        for name, term in self.auxiliary.items():
            stop = start + term.num_rows(prepared.needs[name])
            value = term.of_states(denoiser, states, slice(start, stop), num_tokens, prepared.needs[name])
            start = stop
            if value is not None:
                of_states[name], auxiliary[name] = value, value.detach()
        return output, auxiliary, of_states
