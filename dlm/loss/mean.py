"""The unweighted loss: every masked token counts alike, so blocks with many masks count more (Fast-dLLM v2, TiDAR)."""

from __future__ import annotations

import torch

from dlm.loss.base import Loss


class Mean(Loss):
    """Masked tokens with weight 1."""

    def weight(self, scored):
        return torch.ones_like(scored.weight)
