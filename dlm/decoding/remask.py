"""Revision by low-confidence remasking (after LLaDA, arXiv 2502.09992, and ReMDM, arXiv 2503.00307): a committed token
that becomes improbable once its neighbours are known is masked again, until its block is finished.

LLaDA remasks the least confident predictions of the same forward, which is the same as committing the others. Here
every later forward of the block scores a committed token again. This costs nothing, since the forward reads it anyway.
A model is only trained to score visible tokens if its loss covers them.
"""

from __future__ import annotations

from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.threshold import AboveThreshold


class Revising(AboveThreshold):
    """Commits by threshold, and remasks the tokens of the current block whose probability has fallen below
    `remask_below`: the least probable first, and fewer than the forward commits. So every forward leaves fewer masks,
    and decoding never takes more forwards than one token per step. At 0 nothing is revised. With the token shift, a
    block's first token is scored once, by the finished context, and stays."""

    def __init__(self, threshold: float, remask_below: float, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(threshold, temperature, top_p)
        if not 0 <= remask_below < 1:
            raise ValueError(f"decoding.remask_below {remask_below} must lie in [0, 1) (0 revises nothing)")
        self.remask_below = remask_below


class Remask(Decoder):
    """Decodes one block after another, each revised until it is finished."""

    def __init__(
        self,
        threshold: float,
        remask_below: float,
        sliding: bool = False,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ):
        super().__init__(Blocks(sliding), Revising(threshold, remask_below, temperature, top_p))
