"""Confidence-threshold decoding (Efficient-DLM §3; Fast-dLLM): commit every prediction that is confident enough."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import CommitRule


class AboveThreshold(CommitRule):
    """Commits all positions whose confidence exceeds `threshold`; at 1 or above, one token per step."""

    compared = ("threshold",)

    def __init__(self, threshold: float, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        if threshold < 0:
            raise ValueError(f"decoding.threshold {threshold} must be >= 0 (1 or more commits one token per step)")
        self.threshold = threshold

    def select(self, confidence: Float[Tensor, "B K"], rank: Float[Tensor, "B K"] | None) -> Bool[Tensor, "B K"]:
        return confidence > self.threshold


class Threshold(Decoder):
    """Decodes one block after another, by a threshold on the probability."""

    def __init__(self, threshold: float, sliding: bool = False, temperature: float = 0.0, top_p: float = 1.0):
        exports = () if sliding else ("threshold",)
        super().__init__(Blocks(sliding), AboveThreshold(threshold, temperature, top_p), exports)
