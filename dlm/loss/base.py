"""What is minimised over the scored tokens: their cross-entropy, each with a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dlm.types import Batch, LossOutput, Noised, Scored

PER = ("token", "sequence", "masked")


class Loss(ABC):
    """Contract: a weighted sum over the scored tokens divided by `num_tokens`, the fixed number of tokens in a batch.

    A fixed divisor, not the number of tokens that happen to be masked, makes the gradient of a global batch the mean of
    its micro-batches' gradients however it is split (accumulation, devices). What is to be averaged otherwise (`per`)
    is a factor of each row's weights, so this holds for it, too:

        token      every token of the global batch counts alike (Nemotron-Labs-Diffusion's global averaging)
        sequence   every row counts alike, however few of its tokens can be masked
        masked     every row counts alike, as the mean over its scored tokens (DiffuLLaMA)

    `scale` multiplies it all: 0 leaves the auxiliary losses alone.
    """

    def __init__(self, per: str = "token", scale: float = 1.0):
        if per not in PER:
            raise ValueError(f"loss.per {per!r} is unknown: choose one of {', '.join(PER)}")
        if scale < 0:
            raise ValueError(f"loss.scale {scale} must be >= 0")
        self.per, self.scale = per, scale

    def __call__(self, logits: Float[Tensor, "N V"], scored: Scored, num_tokens: int) -> LossOutput:
        nll = F.cross_entropy(logits, scored.target, reduction="none")
        weight = scored.weight if scored.loss_weight is None else scored.loss_weight
        return LossOutput((weight * nll).sum() / num_tokens, nll.detach())

    @abstractmethod
    def weight(self, batch: Batch, noised: Noised) -> Float[Tensor, "B KL"]:
        """The weight of every scored token, before `per` and `scale` (on the CPU)."""

    def weights(self, batch: Batch, noised: Noised) -> Float[Tensor, "B KL"]:
        """What `loss_weight` is to be of every scored token of a batch (on the CPU)."""
        width = noised.xt.shape[1]
        scored = noised.in_loss
        maskable = batch.maskable.repeat(1, width // batch.x0.shape[1])
        counted = {"token": torch.ones_like(scored), "sequence": maskable, "masked": scored}[self.per]
        return self.scale * width / counted.sum(1, keepdim=True).clamp_min(1) * self.weight(batch, noised)
