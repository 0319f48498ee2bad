"""The unweighted loss: all scored tokens weigh the same, so blocks with many masks count more (Fast-dLLM v2, TiDAR)."""

from __future__ import annotations

from dlm.loss.base import Loss


class Mean(Loss):
    """Every scored token has weight 1."""

    def weight(self, batch, noised):
        return noised.in_loss.float()
