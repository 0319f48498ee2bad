"""The diffusion loss: a weighted sum over the scored tokens, by default of their cross-entropy."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dlm.types import Batch, LossOutput, Noised, Scored

PER = ("token", "sequence", "masked")


class Loss(ABC):
    """Contract: a weighted sum over the scored tokens divided by `num_tokens`, the fixed number of tokens in a batch.

    A subclass states the `weight` of each token and may replace its cross-entropy by another `token_loss`.

    A fixed divisor, not the number of tokens that happen to be masked, makes the gradient of a global batch the mean of
    its micro-batches' gradients however it is split (accumulation, devices). Any other average (`per`) is a factor on
    each row's weights, so it keeps this property:

        token      every token of the global batch has the same weight (Nemotron-Labs-Diffusion's global averaging)
        sequence   every row has the same weight, however few of its tokens can be masked
        masked     every row has the same weight, and its loss is the mean over its scored tokens (DiffuLLaMA)

    `scale` multiplies the sum: with 0 only the auxiliary losses are trained on.
    """

    def __init__(self, per: str = "token", scale: float = 1.0):
        if per not in PER:
            raise ValueError(f"loss.per {per!r} is unknown: choose one of {', '.join(PER)}")
        if scale < 0:
            raise ValueError(f"loss.scale {scale} must be >= 0")
        self.per, self.scale = per, scale

    def __call__(self, logits: Float[Tensor, "N V"], scored: Scored, num_tokens: int) -> LossOutput:
        """The weighted sum of `token_loss`, and the plain cross-entropy of every token."""
        nll = F.cross_entropy(logits, scored.target, reduction="none")
        weight = scored.weight if scored.loss_weight is None else scored.loss_weight
        loss = (weight * self.token_loss(nll, logits, scored.target)).sum() / num_tokens
        return LossOutput(loss, nll.detach())

    def token_loss(
        self, nll: Float[Tensor, " N"], logits: Float[Tensor, "N V"], target: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """The unweighted loss of every scored token. `nll` is its cross-entropy, in nats; the mask token's logit is
        -inf."""
        return nll

    @abstractmethod
    def weight(self, batch: Batch, noised: Noised) -> Float[Tensor, "B KL"]:
        """The weight of every scored token, before `per` and `scale` (on the CPU)."""

    def weights(self, batch: Batch, noised: Noised) -> Float[Tensor, "B KL"]:
        """The weight of every scored token with `per`, `scale` and halves applied: `Scored.loss_weight` (on CPU)."""
        width = noised.xt.shape[1]
        scored = noised.in_loss
        targets = batch.targets.repeat(1, width // batch.x0.shape[1])
        averaged = {"token": torch.ones_like(scored), "sequence": targets, "masked": scored}[self.per]
        weight = self.weight(batch, noised)
        if batch.halved is not None:
            weight = torch.where(batch.halved.repeat(1, width // batch.x0.shape[1]), weight / 2, weight)
        return self.scale * width / averaged.sum(1, keepdim=True).clamp_min(1) * weight
