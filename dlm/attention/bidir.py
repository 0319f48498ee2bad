"""Fully bidirectional attention over one noisy stream (Efficient-DLM, Figure 2b; LLaDA, Dream)."""

from __future__ import annotations

import random

import torch
from jaxtyping import Bool
from torch import Tensor

from dlm.attention.base import AttentionPattern, NoisePer
from dlm.types import Rows

CANVASES = ("whole", "block")


class Bidir(AttentionPattern):
    """Every row sees every column of its document. Nothing can be cached; `block_size` only orders the decoding.

    Decoding denoises a canvas that ends with the current block (`canvas=block`), or with `max_new_tokens` (`whole`:
    LLaDA, Dream), which is longer than the answer. There training documents end in up to `max_tail` further EOS,
    rounded up to whole blocks (LLaDA's padding by EOS).
    """

    noise_per = NoisePer.SEQUENCE
    cacheable = False

    def __init__(self, block_size: int, max_tail: int = 32, canvas: str = "whole"):
        super().__init__(block_size)
        if canvas not in CANVASES:
            raise ValueError(f"attention.canvas {canvas!r} is unknown: choose one of {', '.join(CANVASES)}")
        self.max_tail, self.whole_canvas = max_tail, canvas == "whole"

    def tail(self, length: int, given: int, rng: random.Random) -> int:
        extra = rng.randint(0, -(-self.max_tail // self.block_size))
        return super().tail(length, given, rng) + extra * self.block_size

    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        return torch.ones_like(q.clean & k.clean)
