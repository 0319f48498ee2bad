"""Context-adaptive weights: the more is visible near a masked token, the more it counts (Dream, CART)."""

from __future__ import annotations

import torch

from dlm.loss.base import Loss


class Cart(Loss):
    """w_i = 1/2 sum of Geo(p, |i - j| - 1) over the visible tokens j of its document, Geo(p, d) = p (1 - p)^d: the
    visible share of a two-sided geometric kernel around token i. Dream publishes no p."""

    def __init__(self, p: float, **kwargs):
        super().__init__(**kwargs)
        if not 0 < p <= 1:
            raise ValueError(f"loss.p {p} must lie in (0, 1]")
        self.p = p

    def weight(self, batch, noised):
        length = batch.x0.shape[1]
        distance = (torch.arange(length)[:, None] - torch.arange(length)).abs()
        kernel = (self.p * (1 - self.p) ** (distance - 1).clamp_min(0)).masked_fill(distance == 0, 0.0) / 2
        same_document = batch.document[:, :, None] == batch.document[:, None, :]
        hidden = noised.masked.unflatten(1, (-1, length)).float()
        weight = torch.einsum("bij,bvj->bvi", kernel * same_document, 1 - hidden).flatten(1)
        return weight * noised.in_loss
