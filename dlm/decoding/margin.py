"""The margin rule (Dream's `topk_margin`, arXiv 2508.15487; Kim et al., arXiv 2502.06768): the model is sure of a
token that no other comes near, rather than of a probable one."""

from __future__ import annotations

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import wide
from dlm.decoding.threshold import AboveThreshold


class AboveMargin(AboveThreshold):
    """Commits all positions at which the most probable token is more than `threshold` more probable than the second;
    that difference is its confidence."""

    def confidence(self, logits, token):
        first, second = logits.softmax(-1, dtype=wide(logits)).topk(2).values.unbind(-1)
        return first - second


class Margin(Decoder):
    """One block after another, by a threshold on the margin."""

    def __init__(self, threshold: float, sliding: bool = False, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Blocks(sliding), AboveMargin(threshold, temperature, top_p))
