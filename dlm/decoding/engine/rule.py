"""Which of a block's predictions are committed in one denoising step.

A rule sees the confidence of every masked position of the current block and selects the ones to commit. If it selects
none, the engine commits the most confident one.

    B sequences (or blocks)        K positions of a block        V vocabulary
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import TopPLogitsWarper


def wide(logits: Tensor) -> torch.dtype:
    """The type for probabilities, at least float32. bfloat16 has nothing between 20 and 20.125: a log-sum-exp in it is
    wrong by up to 6 %, which commits tokens that a threshold excludes."""
    return torch.promote_types(logits.dtype, torch.float32)


class CommitRule(ABC):
    """How tokens are sampled, in which order they are committed, and how many at once. `temperature` 0 is greedy;
    `top_p` < 1 samples from the nucleus. Raises `ValueError` for values outside their range."""

    remask_below: float = 0.0  # a committed token of the current block is remasked once its probability is lower
    compared: tuple[str, ...] = ()  # the numbers that `select` compares with tensors (see `on`)

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0):
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"decoding.temperature {temperature} must be >= 0 and decoding.top_p {top_p} must lie in (0, 1]"
            )
        self.temperature, self.top_p = temperature, top_p

    @final
    def on(self, device: torch.device) -> CommitRule:
        """This rule with the `compared` numbers as tensors, so that one compiled step serves all their values."""
        rule = copy.copy(self)
        for name in self.compared:
            number = getattr(self, name)
            setattr(rule, name, None if number is None else torch.tensor(number, dtype=torch.float64, device=device))
        return rule

    @abstractmethod
    def select(self, confidence: Float[Tensor, "B K"], rank: Float[Tensor, "B K"]) -> Bool[Tensor, "B K"]:
        """The positions to commit. Where a position is not masked, `confidence` is -1 and `rank` is -inf. The position
        with the highest rank is committed whether it is selected or not."""

    def rank(self, confidence: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The order in which masked positions are committed, the highest rank first: by confidence."""
        return confidence

    def confidence(self, logits: Float[Tensor, "B K V"], token: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The confidence of the model in `token`, in [0, 1]: its probability (at temperature 1), unless a rule defines
        another measure. `Generation.confidence` records it."""
        return logits.softmax(-1, dtype=wide(logits)).gather(-1, token[..., None])[..., 0]

    def probabilities(self, logits: Float[Tensor, "B K V"]) -> Float[Tensor, "B K V"]:
        """The distributions that tokens are drawn from if `temperature` > 0."""
        logits = logits.to(wide(logits)) / self.temperature
        if self.top_p < 1:
            logits = TopPLogitsWarper(self.top_p)(None, logits.flatten(0, 1)).view_as(logits)
        return logits.softmax(-1)

    def sample(
        self, logits: Float[Tensor, "B K V"], generator: torch.Generator | None
    ) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
        """A token for every position, and its confidence."""
        if self.temperature == 0:
            token = logits.argmax(-1)
        else:
            flat = self.probabilities(logits).flatten(0, 1)
            token = torch.multinomial(flat, 1, generator=generator).view(logits.shape[:2])
        return token, self.confidence(logits, token)
