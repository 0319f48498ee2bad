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
    """The target of each of M rows of the clean stream, and its weight; None: all have weight 1."""

    target: Int[Tensor, " M"]
    weight: Float[Tensor, " M"] | None


class AR(Auxiliary):
    """The cross-entropy of every target of the batch given the clean tokens before it. `balance` multiplies it by the
    detached ratio (diffusion loss / AR loss), so that `weight` is the AR loss in units of the diffusion loss (I-DLM).
    `per` states the average: over the tokens of the global batch (`token`), or first over those of each row
    (`sequence`, MARS)."""

    def __init__(self, weight: float, balance: bool = False, per: str = "token"):
        super().__init__(weight)
        if per not in PER:
            raise ValueError(f"auxiliary.ar.per {per!r} is unknown: choose one of {', '.join(PER)}")
        self.balanced, self.per = balance, per

    def check(self, pattern, masking):
        if not (pattern.clean_stream and pattern.noisy_stream and (pattern.clean_causal or pattern.block_size == 1)):
            raise ValueError(
                f"auxiliary=ar predicts token i+1 from clean row i, but attention={type(pattern).__name__} lets this "
                "row see the token, or has no clean rows: choose attention=block_token_causal or block_causal"
            )

    def needs(self, layout, batch, noised, scored):
        is_target = batch.targets & (batch.position > 0)
        token = is_target.flatten().nonzero()[:, 0]
        length, width = batch.x0.shape[1], noised.xt.shape[1]
        rows = token // length * (width + length) + width + token % length - 1
        weight = None if self.per == "token" else (width / is_target.sum(1))[token // length]
        return rows, NextTokens(batch.x0.flatten()[token], weight)

    def num_rows(self, needs):
        return len(needs.target)

    def of_states(self, denoiser, states, extra, num_tokens, needs):
        def chunk_loss(logits: Float[Tensor, "C V"], chunk: slice) -> LossOutput:
            nll = F.cross_entropy(logits, needs.target[chunk], reduction="none")
            weighted = nll if needs.weight is None else needs.weight[chunk] * nll
            return LossOutput(weighted.sum() / num_tokens, nll.detach())

        return denoiser.loss_of(states[-1][extra], chunk_loss).loss

    def factor(self, value, diffusion):
        if not self.balanced:
            return self.weight
        return self.weight * diffusion.detach() / value.detach().clamp_min(torch.finfo(value.dtype).tiny)
