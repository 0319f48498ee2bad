"""Blocks in parts (Fast-dLLM v2, arXiv 2509.26328): the tokens of a sub-block that are confident enough, one sub-block
after the other, and the first token of a block before all others."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.rule import CommitRule


class SubBlocks(CommitRule):
    """Commits the positions of the first unfinished sub-block of `size` tokens whose confidence exceeds `threshold`; at
    1 or above, one token per step. The first token of a block is committed alone: with the token shift the finished
    context scores it, and the others see it from then on."""

    compared = ("threshold",)

    def __init__(self, threshold: float, size: int, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(temperature, top_p)
        if threshold < 0:
            raise ValueError(f"decoding.threshold {threshold} must be >= 0 (1 or more commits one token per step)")
        if size < 1:
            raise ValueError(f"decoding.size {size} must be at least 1 token")
        self.threshold, self.size = threshold, size

    def rank(self, confidence: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """By sub-block, in it by confidence, which is at most 1; the first token before all."""
        at = torch.arange(confidence.shape[1], device=confidence.device)
        return confidence - 2 * (at // self.size) + 2 * (at == 0)

    def select(self, confidence: Float[Tensor, "B K"], rank: Float[Tensor, "B K"] | None) -> Bool[Tensor, "B K"]:
        masked, at = confidence >= 0, torch.arange(confidence.shape[1], device=confidence.device)
        current = masked.int().argmax(1, keepdim=True) // self.size
        confident = masked & (at // self.size == current) & (confidence > self.threshold)
        return torch.where(masked[:, :1], at == 0, confident)


class SubBlock(Decoder):
    """Decodes one block after another, each in sub-blocks from left to right."""

    def __init__(self, threshold: float, size: int, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Blocks(), SubBlocks(threshold, size, temperature, top_p))
