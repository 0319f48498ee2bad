"""Self-consistency of two views: for a token that both hide, the view that sees less learns from the one that sees more
(CDLM's consistency loss, between noise levels of one text)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.auxiliary.base import Auxiliary, Forward
from dlm.auxiliary.confidence import finite
from dlm.auxiliary.distill import forward
from dlm.types import Movable


@dataclass(frozen=True)
class BetterViews(Movable):
    """`index[n]` is scored token n in the view that hides least of its unit: an index of scored tokens, n itself if no
    view hides less."""

    index: Int[Tensor, " N"]


class Consistency(Auxiliary):
    """KL(better view || this view) in nats, the better view detached."""

    def check(self, pattern, masking):
        if masking.views < 2 or masking.complementary:
            raise ValueError(
                f"auxiliary=consistency compares views that hide the same token, and masking.views {masking.views} "
                f"{'complementary ' * masking.complementary}has none: set masking.views=2 masking.complementary=false"
            )

    def needs(self, layout, batch, noised, scored):
        # The weight of a token is n / k or 1 / t, so it is largest in the view that hides least of the unit.
        order = scored.weight.argsort(stable=True)
        rank = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
        best = torch.zeros(batch.x0.numel(), dtype=torch.long).scatter_reduce(0, scored.index, rank, "amax")
        return None, BetterViews(order[best[scored.index]])

    def forwards(self, denoiser, needs):
        return [Forward(denoiser, None, len(needs.index))]

    def of_logits(self, denoiser, hidden, scored, needs):
        detached = hidden.detach()

        def divergence(logits, chunk):
            with torch.no_grad():
                target = finite(denoiser.logits(detached[needs.index[chunk]])).log_softmax(-1)
            return forward(target, finite(logits).log_softmax(-1))

        return divergence
