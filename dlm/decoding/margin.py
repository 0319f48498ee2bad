"""The margin rule (Dream's `topk_margin`, arXiv 2508.15487; Kim et al., arXiv 2502.06768): the model is sure of a
token that no other comes near, rather than of a probable one."""

from __future__ import annotations

from dlm.decoding.base import wide
from dlm.decoding.threshold import Threshold


class Margin(Threshold):
    """Commits all positions at which the most probable token is more than `threshold` more probable than the second;
    that difference is its confidence."""

    def confidence(self, logits, token):
        first, second = logits.softmax(-1, dtype=wide(logits)).topk(2).values.unbind(-1)
        return first - second
