"""Block-wise attention with a token-causal clean stream (SBD, TiDAR, Nemotron-Labs-Diffusion, NBDiff, FLARE)."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from dlm.attention.block import Block
from dlm.types import Rows


class BlockTokenCausal(Block):
    """Like `Block`, but a clean row sees no later clean token. So the clean stream is the AR model: the same forward
    can also train the AR loss, and its keys and values do not depend on where blocks begin."""

    clean_causal = True
    envelope = Block.allowed  # unneeded rows are pruned block by block

    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        return super().allowed(q, k) & ~(q.clean & k.clean & (k.position > q.position))
