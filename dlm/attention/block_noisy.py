"""Block-wise attention over one noisy stream (Efficient-DLM, Figure 2c): rows see earlier blocks in corrupted form."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.types import Rows


class BlockNoisy(AttentionPattern):
    """A row sees its own and earlier blocks. In decoding the earlier blocks are finished, a state that occurs in
    training only as t → 0."""

    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        return self.block(k) <= self.block(q)
