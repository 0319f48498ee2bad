"""Context-adaptive weights: a masked token counts by how much is visible near it (Dream, CART)."""

from __future__ import annotations

import torch

from dlm.loss.base import Loss


class Cart(Loss):
    """w_i = 1/2 sum over the visible tokens j of its document of Geo(p, |i - j| - 1), Geo(p, d) = p (1 - p)^d: the
    share of a two-sided geometric kernel around token i that is visible. Dream publishes no p."""

    def __init__(self, p: float, **kwargs):
        super().__init__(**kwargs)
        if not 0 < p <= 1:
            raise ValueError(f"loss.p {p} must lie in (0, 1]")
        self.p = p

    def weight(self, batch, noised):
        length = batch.x0.shape[1]
        distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        kernel = (self.p * (1 - self.p) ** (distance - 1).clamp_min(0)).masked_fill(distance == 0, 0.0) / 2
        together = batch.document[:, :, None] == batch.document[:, None, :]
        near = kernel * together
        hidden = noised.masked.unflatten(1, (-1, length)).float()
        weight = torch.einsum("bij,bvj->bvi", near, 1 - hidden).flatten(1)
        return weight * noised.in_loss
