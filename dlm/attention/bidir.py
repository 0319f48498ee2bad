"""Fully bidirectional attention over one noisy stream (Efficient-DLM, Figure 2b; LLaDA, Dream)."""

from __future__ import annotations

import random

import torch
from jaxtyping import Bool
from torch import Tensor

from dlm.attention.base import AttentionPattern, NoisePer
from dlm.types import Rows


class Bidir(AttentionPattern):
    """Every row sees every column of its document. Nothing can be cached; `block_size` only orders the decoding.

    Decoding denoises a canvas that is longer than the answer. So training documents end in up to `max_tail` further
    EOS, rounded up to whole blocks (LLaDA's padding by EOS).
    """

    noise_per = NoisePer.SEQUENCE
    cacheable = False

    def __init__(self, block_size: int, max_tail: int = 32):
        super().__init__(block_size)
        self.max_tail = max_tail

    def tail(self, length: int, rng: random.Random) -> int:
        extra = rng.randint(0, -(-self.max_tail // self.block_size))
        return super().tail(length, rng) + extra * self.block_size

    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        return torch.ones_like(q.clean & k.clean)
