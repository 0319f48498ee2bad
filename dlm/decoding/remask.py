"""Revision by low-confidence remasking (after LLaDA, arXiv 2502.09992, and ReMDM, arXiv 2503.00307): what turns out
to be improbable once its neighbours are known is masked again, until its block is finished.

LLaDA masks the least confident predictions of the same forward, which is committing the others. Here a token that was
committed is looked at again in every later forward of its block, at no extra cost: the forward reads it anyway. What a
model says of a token that it sees is only trained where its loss covers visible tokens.
"""

from __future__ import annotations

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.threshold import AboveThreshold


class Revising(AboveThreshold):
    """Commits by threshold, and masks again the tokens of the current block whose probability has fallen below
    `remask_below`, the least probable first and one fewer than the forward commits. So every forward leaves fewer masks
    than it found and decoding ends: it never takes more forwards than one token per step. At 0 nothing is revised. With
    the token shift, a block's first token is scored once, by the finished context, and stays."""

    def __init__(self, threshold: float, remask_below: float, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(threshold, temperature, top_p)
        if not 0 <= remask_below < 1:
            raise ValueError(f"decoding.remask_below {remask_below} must lie in [0, 1) (0 revises nothing)")
        self.remask_below = remask_below


class Remask(Decoder):
    """One block after another, each revised until it is finished."""

    def __init__(
        self,
        threshold: float,
        remask_below: float,
        sliding: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ):
        super().__init__(Blocks(sliding), Revising(threshold, remask_below, temperature, top_p))
