"""Causal attention: the autoregressive parent, as a point of the same space (Efficient-DLM, Figure 2a).

It is the limit of block-wise attention at block size 1 with the token shift: every token is masked in its own block and
scored from the previous position of the clean stream, so the noisy stream is not needed and not computed.
"""

from __future__ import annotations

from typing import Self

from jaxtyping import Bool
from torch import Tensor

from dlm.attention.base import AttentionPattern, NoisePer
from dlm.types import Rows


class AR(AttentionPattern):
    """A row sees its own and earlier positions."""

    noisy_stream = False
    clean_stream = True
    noise_per = NoisePer.TOKEN
    requires_token_shift = True
    clean_causal = True

    def __init__(self, block_size: int = 1):
        super().__init__(1)  # AR commits one token at a time, for any block size of the dLMs that it is compared with

    def at(self, block_size: int) -> Self:
        return self

    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        return k.position <= q.position
