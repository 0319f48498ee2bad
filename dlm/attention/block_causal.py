"""Block-wise attention that is causal everywhere (I-DLM, MARS): masks are drafted from left to right."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from dlm.attention.block import Block
from dlm.types import Rows


class BlockCausal(Block):
    """A noisy row sees the earlier clean blocks and its own block up to itself; a clean row sees what an AR model
    would."""

    clean_causal = True
    envelope = Block.allowed  # unneeded rows are pruned block by block

    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        return super().allowed(q, k) & ~((q.clean == k.clean) & (k.position > q.position))
