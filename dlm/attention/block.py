"""Block-wise attention with clean context (Efficient-DLM, Figure 2d; BD3-LM, SDAR): [noisy ; clean], 2L rows."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.types import Rows


class Block(AttentionPattern):
    """A noisy row sees its own noisy block and the earlier clean blocks; a clean row its own and earlier clean
    blocks."""

    clean_stream = True

    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        q_block, k_block = self.block(q), self.block(k)
        noisy_to_noisy = ~q.clean & ~k.clean & (q_block == k_block)
        noisy_to_clean = ~q.clean & k.clean & (k_block < q_block)
        clean_to_clean = q.clean & k.clean & (k_block <= q_block)
        return noisy_to_noisy | noisy_to_clean | clean_to_clean
