"""Which of a block's predictions are committed in one denoising step.

A rule sees the confidence of every position that is still masked in the current block and says which to keep. Where it
keeps none, the most confident is committed all the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import TopPLogitsWarper


def wide(logits: Tensor) -> torch.dtype:
    """What probabilities are computed in. bfloat16 has nothing between 20 and 20.125: a log-sum-exp in it is wrong by
    up to 6 %, which commits tokens that a threshold excludes."""
    return torch.promote_types(logits.dtype, torch.float32)


class CommitRule(ABC):
    """How tokens are sampled, in which order they are committed, and how many of them at once. `temperature` 0 is
    greedy; `top_p` < 1 samples from the nucleus."""

    remask_below: float = 0.0  # a committed token of the current block is masked again when it is less probable

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0):
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"decoding.temperature {temperature} must be >= 0 and decoding.top_p {top_p} must lie in (0, 1]"
            )
        self.temperature, self.top_p = temperature, top_p

    @abstractmethod
    def select(self, confidence: Float[Tensor, "N K"], rank: Float[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
        """The positions to commit. `confidence` is -1 where nothing is masked, and `rank` is -inf. The position of the
        highest rank is committed whether it is selected or not."""

    def rank(self, confidence: Float[Tensor, "N K"], is_eos: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The order in which masked positions are committed, the highest first: by confidence, an EOS behind every
        other token, the leftmost first."""
        offset = torch.arange(confidence.shape[1], device=confidence.device)
        return torch.where(is_eos, -1 - offset / confidence.shape[1], confidence)

    def confidence(self, logits: Float[Tensor, "N K V"], token: Int[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """How sure the model is of `token`, in [0, 1]: its probability (at temperature 1), unless a rule has another
        measure. `Generation.confidence` records it."""
        return logits.softmax(-1, dtype=wide(logits)).gather(-1, token[..., None])[..., 0]

    def probabilities(self, logits: Float[Tensor, "N K V"]) -> Float[Tensor, "N K V"]:
        """The distributions that tokens are drawn from, where `temperature` > 0."""
        logits = logits.to(wide(logits)) / self.temperature
        if self.top_p < 1:
            logits = TopPLogitsWarper(self.top_p)(None, logits.flatten(0, 1)).view_as(logits)
        return logits.softmax(-1)

    def sample(
        self, logits: Float[Tensor, "N K V"], generator: torch.Generator | None
    ) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        """A token for every position, and its confidence."""
        if self.temperature == 0:
            token = logits.argmax(-1)
        else:
            flat = self.probabilities(logits).flatten(0, 1)
            token = torch.multinomial(flat, 1, generator=generator).view(logits.shape[:2])
        return token, self.confidence(logits, token)
