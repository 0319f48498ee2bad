"""Block-wise attention with a token-causal clean stream (SBD, TiDAR, Nemotron-Labs-Diffusion, NBDiff, FLARE)."""

from __future__ import annotations

from dlm.attention.block import Block


class BlockTokenCausal(Block):
    """As `Block`, but a clean row sees no later clean token. The clean stream is the AR model then: it can be trained
    by its own loss in the same forward, and its keys and values do not depend on where blocks begin."""

    clean_causal = True
    envelope = Block.allowed  # which rows are needed is decided block by block

    def allowed(self, q, k):
        return super().allowed(q, k) & ~(q.clean & k.clean & (k.position > q.position))
