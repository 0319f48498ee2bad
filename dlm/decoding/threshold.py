"""Confidence-threshold decoding (Efficient-DLM §3; Fast-dLLM): commit every prediction that is confident enough."""

from __future__ import annotations

from dlm.decoding.base import Decoder


class Threshold(Decoder):
    """Commits all positions whose confidence exceeds `threshold`; at 1 or above, one token per step."""

    def __init__(self, threshold: float, **kwargs):
        super().__init__(**kwargs)
        if threshold < 0:
            raise ValueError(f"decoding.threshold {threshold} must be >= 0 (1 or more commits one token per step)")
        self.threshold = threshold

    def select(self, confidence, rank):
        return confidence > self.threshold
