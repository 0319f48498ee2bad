"""The loss by noise level and by position in the block, over the steps since it was last asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.types import Prepared

BINS = 8  # of the noise level, and of the positions of a block of more tokens
LEVEL, POSITION = "loss_by_level", "loss_by_position"


class LossProfile:
    """Sums the losses of hidden tokens in bins, on the device: adding to it waits for nothing."""

    def __init__(self, token_shift: bool, device: torch.device):
        self.token_shift, self.maskable = token_shift, 0
        self.sums = torch.zeros(2, 2 * BINS, device=device)  # losses and tokens, by level and then by position

    @torch.no_grad()
    def add(self, pieces: list[Prepared], nll: Float[Tensor, " N"]) -> None:
        """Add a micro-batch, with the negative log-likelihoods of its scored tokens. The noise level of a token is what
        its likelihood weight is the inverse of."""
        weight = torch.cat([piece.scored.weight for piece in pieces])
        position = torch.cat([positions(piece, self.token_shift) for piece in pieces])
        hidden = (weight > 0).float()
        level = (BINS / weight.clamp_min(1e-6) - 1e-3).ceil().long() - 1  # an eighth is in the first eighth
        bins = torch.cat([level.clamp(0, BINS - 1), BINS + position])
        values = torch.stack([nll.detach().float() * hidden, hidden]).repeat(1, 2)
        self.sums.index_add_(1, bins, values)
        self.maskable += sum(piece.num_maskable for piece in pieces)

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean loss in nats in every bin that was not empty, `loss_by_level/1` to `/8` and `loss_by_position/1` and
        so on, and the share of the maskable tokens that was hidden. `total` adds up what all processes have."""
        counts = torch.tensor([float(self.maskable)], device=self.sums.device)
        *sums, maskable = total(torch.cat([self.sums.flatten(), counts])).tolist()
        self.sums.zero_()
        self.maskable = 0
        losses, tokens = sums[: 2 * BINS], sums[2 * BINS :]
        names = [f"{kind}/{number + 1}" for kind in (LEVEL, POSITION) for number in range(BINS)]
        means = {name: loss / n for name, loss, n in zip(names, losses, tokens, strict=True) if n}
        return means | ({"train/masked_share": sum(tokens[:BINS]) / maskable} if maskable else {})


def positions(piece: Prepared, token_shift: bool) -> Int[Tensor, " N"]:
    """The bin of every scored token by its position in the block: the position itself in blocks of up to `BINS`."""
    inputs, size = piece.inputs, piece.inputs.pattern.block_size
    of_state = inputs.rows.position.flatten()[inputs.scored[: len(piece.scored.target)]]
    return (of_state + token_shift) % size * min(size, BINS) // size
