"""Block-wise attention over one noisy stream (Efficient-DLM, Figure 2c): earlier blocks are seen as corrupted."""

from __future__ import annotations

from dlm.attention.base import AttentionPattern


class BlockNoisy(AttentionPattern):
    """A row sees its own and earlier blocks. In decoding the earlier blocks are finished, a state that training only
    shows as t → 0."""

    def allowed(self, q, k):
        return self.block(k) <= self.block(q)
