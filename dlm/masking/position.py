"""Position-dependent masking (Efficient-DLM, Eq. 2): late tokens of a block are hidden first when t is small."""

from __future__ import annotations

import math

from dlm.masking.base import Masking, gumbel


class Position(Masking):
    """Position i of a unit of length L' has weight w_i(t) = exp(beta (1 - t) i), beta = ln 2 / (half_life L'), and k
    tokens are drawn without replacement by Gumbel-top-k. `half_life` is the fraction of the unit over which the weight
    doubles as t -> 0. An infinite one gives uniform masking, one near 0 right to left. Biased: early tokens are hidden
    too rarely."""

    unbiased = False

    def __init__(self, half_life: float, **kwargs):
        super().__init__(**kwargs)
        if not half_life > 0:
            raise ValueError(
                f"masking.half_life {half_life} must be > 0 (the paper uses 0.1; use masking=uniform for infinity "
                "and masking=right_to_left for 0)"
            )
        self.half_life = half_life

    def priority(self, t, offset, length, generator):
        beta = math.log(2) / (self.half_life * length)
        return beta * (1 - t) * offset + gumbel(t.shape, generator)
