"""Causal attention: the autoregressive parent, as a point of the same space (Efficient-DLM, Figure 2a).

It is the limit of block-wise attention at block size 1 with the token shift: every token is hidden in its own block and
scored from the clean stream's previous position, so nobody reads the noisy stream and it is not computed.
"""

from __future__ import annotations

from dlm.attention.base import AttentionPattern, NoisePer


class AR(AttentionPattern):
    """A row sees its own and earlier positions."""

    noisy_stream = False
    clean_stream = True
    noise_per = NoisePer.TOKEN
    requires_token_shift = True
    clean_causal = True

    def __init__(self, block_size: int = 1):
        super().__init__(1)  # whatever the block size of the dLMs beside it, AR commits one token at a time

    def at(self, block_size):
        return self

    def allowed(self, q, k):
        return k.position <= q.position
