"""The margin rule (Dream's `topk_margin`, arXiv 2508.15487; Kim et al., arXiv 2502.06768): the confidence in a token is
its lead over the second most probable one, not its probability."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import wide
from dlm.decoding.threshold import AboveThreshold


class AboveMargin(AboveThreshold):
    """Commits all positions whose margin, the difference between the two largest probabilities, exceeds `threshold`.
    The margin is the confidence of this rule."""

    def confidence(self, logits: Float[Tensor, "B K V"], token: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        first, second = logits.softmax(-1, dtype=wide(logits)).topk(2).values.unbind(-1)
        return first - second


class Margin(Decoder):
    """Decodes one block after another, by a threshold on the margin."""

    def __init__(self, threshold: float, sliding: bool = False, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Blocks(sliding), AboveMargin(threshold, temperature, top_p))
