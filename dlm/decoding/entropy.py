"""The entropy bound (EB-Sampler, arXiv 2505.24857): commit as many positions as the joint error allows.

Tokens committed in one forward are drawn independently of each other. This ignores the mutual information between them,
which is at most the sum of their entropies without the largest one. Positions are committed while that sum is within a
bound.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import CommitRule, wide


class WithinEntropy(CommitRule):
    """Commits masked positions in the order of their entropy, the lowest first, while the sum of the entropies without
    the largest is at most `bound`, in nats. Its confidence is exp(-entropy): 1 where the model is certain, 1/n where n
    tokens are equally probable."""

    compared = ("bound",)

    def __init__(self, bound: float, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        if bound < 0:
            raise ValueError(f"decoding.bound {bound} must be >= 0 nats (0 commits one token per step)")
        self.bound = bound

    def confidence(self, logits: Float[Tensor, "B K V"], token: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return torch.exp(-torch.special.entr(logits.softmax(-1, dtype=wide(logits))).sum(-1))

    def select(self, confidence: Float[Tensor, "B K"], rank: Float[Tensor, "B K"] | None) -> Bool[Tensor, "B K"]:
        entropy = torch.where(confidence >= 0, -confidence.log(), torch.inf)
        ascending, order = entropy.sort(dim=1)
        # The sum without the largest: in ascending order, the largest is the last one.
        spent = torch.nn.functional.pad(ascending.cumsum(1)[:, :-1], (1, 0))
        within = (spent <= self.bound) & (ascending < torch.inf)
        return torch.zeros_like(within).scatter(1, order, within)


class Entropy(Decoder):
    """Decodes one block after another, by the entropy bound."""

    def __init__(self, bound: float, sliding: bool = False, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Blocks(sliding), WithinEntropy(bound, temperature, top_p))
