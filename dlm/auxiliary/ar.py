"""The AR loss on the clean stream, in the same forward (SBD, TiDAR, Nemotron-Labs-Diffusion, I-DLM, MARS, FLARE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dlm.auxiliary.base import Auxiliary
from dlm.types import LossOutput, Movable

PER = ("token", "sequence")


@dataclass(frozen=True)
class NextTokens(Movable):
    """What the rows of the clean stream predict, and how much each counts; None where all count alike."""

    target: Int[Tensor, " M"]
    weight: Float[Tensor, " M"] | None


class AR(Auxiliary):
    """The cross-entropy of every maskable token given the clean tokens before it. `balance` multiplies it by the
    detached ratio of the diffusion loss to it, so that `weight` is its share of the gradient's scale (I-DLM). `per` is
    what counts alike: every token of the global batch, or every row as the mean over these tokens (MARS)."""

    def __init__(self, weight: float, balance: bool = False, per: str = "token"):
        super().__init__(weight)
        if per not in PER:
            raise ValueError(f"auxiliary.ar.per {per!r} is unknown: choose one of {', '.join(PER)}")
        self.balanced, self.per = balance, per

    def check(self, pattern, masking):
        if not (pattern.clean_stream and pattern.noisy_stream and (pattern.clean_causal or pattern.block_size == 1)):
            raise ValueError(
                f"auxiliary=ar scores token i+1 from clean row i, which attention={type(pattern).__name__} lets see it "
                "or does not have: choose attention=block_token_causal or block_causal"
            )

    def needs(self, denoiser, batch, noised, scored):
        counted = batch.maskable & (batch.position > 0)
        token = counted.flatten().nonzero()[:, 0]
        length, width = batch.x0.shape[1], noised.xt.shape[1]
        rows = token // length * (width + length) + width + token % length - 1
        weight = None if self.per == "token" else (width / counted.sum(1))[token // length]
        return rows, NextTokens(batch.x0.flatten()[token], weight)

    def num_rows(self, needs):
        return len(needs.target)

    def of_states(self, denoiser, states, own, num_tokens, needs):
        def part(logits: Tensor, chunk: slice) -> LossOutput:
            nll = F.cross_entropy(logits, needs.target[chunk], reduction="none")
            weighted = nll if needs.weight is None else needs.weight[chunk] * nll
            return LossOutput(weighted.sum() / num_tokens, nll.detach())

        return denoiser.loss_of(states[-1][own], part).loss

    def factor(self, value, diffusion):
        if not self.balanced:
            return self.weight
        return self.weight * diffusion.detach() / value.detach().clamp_min(torch.finfo(value.dtype).tiny)
