"""Whether two computations of the same logits agree up to rounding: checked for a parent before its conversion and for
every run before its first step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# The largest `distance` that counts as rounding, by the bytes of the coarsest type in the computation. A fault (an
# ignored mask, a leak) moves logits by about their spread, a distance of about 1. Rounding in 16 bits moved them by
# 0.01 in 28 layers of random weights, with the columns in another order.
TOLERANCE = {8: 1e-3, 4: 1e-3, 2: 0.1}


def distance(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> float:
    """The distance between logits: the norm of their difference in units of the spread of `b`. The logits of the mask
    token, which are -inf, do not count."""
    a, b = (x.double().masked_fill(~torch.isfinite(x), 0) for x in (a, b))
    return float((a - b).norm() / (b - b.mean()).norm().clamp_min(1e-12))


def tolerance(dtype: torch.dtype) -> float:
    """The largest `distance` between logits that were computed in `dtype` and differ only by rounding."""
    return TOLERANCE[dtype.itemsize]
