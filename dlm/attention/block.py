"""Block-wise attention with clean context (Efficient-DLM, Figure 2d; BD3-LM, SDAR): [noisy ; clean], 2L rows."""

from __future__ import annotations

from dlm.attention.base import AttentionPattern


class Block(AttentionPattern):
    """A noisy row sees its own noisy block and the earlier clean blocks; a clean row its own and earlier clean
    blocks."""

    clean_stream = True

    def allowed(self, q, k):
        q_block, k_block = self.block(q), self.block(k)
        own = ~q.clean & ~k.clean & (q_block == k_block)
        context = ~q.clean & k.clean & (k_block < q_block)
        clean = q.clean & k.clean & (k_block <= q_block)
        return own | context | clean
