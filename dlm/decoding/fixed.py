"""A fixed number of tokens per step (LLaDA, SDAR static): the most confident ones."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import CommitRule


class MostConfident(CommitRule):
    """Commits the `tokens_per_step` most confident masked positions; of equally confident ones, the leftmost."""

    compared = ("tokens_per_step",)

    def __init__(self, tokens_per_step: int = 1, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        if tokens_per_step < 1:
            raise ValueError(f"decoding.tokens_per_step {tokens_per_step} must be at least 1")
        self.tokens_per_step = tokens_per_step

    def select(self, confidence: Float[Tensor, "B K"], rank: Float[Tensor, "B K"]) -> Bool[Tensor, "B K"]:
        # Not topk: it breaks ties differently from argmax, by which the engine commits at least one position, so that
        # one token per step could become two.
        return rank.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < self.tokens_per_step


class Fixed(Decoder):
    """Decodes one block after another, `tokens_per_step` tokens in every forward."""

    def __init__(self, tokens_per_step: int, sliding: bool = False, temperature: float = 0.0, top_p: float = 1.0):
        exports = () if sliding else ("tokens_per_step",)
        super().__init__(Blocks(sliding), MostConfident(tokens_per_step, temperature, top_p), exports)
