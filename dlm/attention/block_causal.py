"""Block-wise attention that is causal everywhere (I-DLM, MARS): masks are drafted from left to right."""

from __future__ import annotations

from dlm.attention.block import Block


class BlockCausal(Block):
    """A noisy row sees the earlier clean blocks and its own block up to itself; a clean row what an AR model sees."""

    clean_causal = True
    envelope = Block.allowed  # which rows are needed is decided block by block

    def allowed(self, q, k):
        return super().allowed(q, k) & ~((q.clean == k.clean) & (k.position > q.position))
