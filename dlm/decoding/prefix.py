"""The longest confident prefix (SDLM, arXiv 2509.24007; MARS, arXiv 2604.07023): tokens are committed from left to
right, as in AR decoding, as many per forward as the model is confident of."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import CommitRule


class ConfidentPrefix(CommitRule):
    """Commits the first masked position, whatever its confidence, and the following ones up to the first whose
    confidence is below `threshold`. A threshold of None commits only the first, a threshold of 0 the whole block."""

    compared = ("threshold",)

    def __init__(self, threshold: float | None, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        if threshold is not None and threshold < 0:
            raise ValueError(f"decoding.threshold {threshold} must be >= 0, or null for one token per step")
        self.threshold = threshold

    def rank(self, confidence: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The order from left to right."""
        return -torch.arange(confidence.shape[1], device=confidence.device).expand_as(confidence).to(confidence.dtype)

    def select(self, confidence: Float[Tensor, "B K"], rank: Float[Tensor, "B K"] | None) -> Bool[Tensor, "B K"]:
        masked = confidence >= 0
        first = masked & (masked.cumsum(1) == 1)
        if self.threshold is None:
            return first
        passed = ~masked | first | (confidence >= self.threshold)
        return masked & passed.cumprod(1).bool()


class Prefix(Decoder):
    """Decodes one block after another, each from left to right."""

    def __init__(self, threshold: float | None, sliding: bool = True, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Blocks(sliding), ConfidentPrefix(threshold, temperature, top_p))
