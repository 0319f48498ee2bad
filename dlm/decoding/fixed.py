"""A fixed number of tokens per step (LLaDA, SDAR static): the most confident ones."""

from __future__ import annotations

import torch

from dlm.decoding.base import Decoder


class Fixed(Decoder):
    """Commits the `tokens_per_step` most confident masked positions, of equally confident ones the leftmost."""

    def __init__(self, tokens_per_step: int, **kwargs):
        super().__init__(**kwargs)
        if tokens_per_step < 1:
            raise ValueError(f"decoding.tokens_per_step {tokens_per_step} must be at least 1")
        self.tokens_per_step = tokens_per_step

    def select(self, confidence, rank):
        # Not topk: it breaks ties otherwise than argmax, by which the engine keeps one, and two would be kept of one.
        best = rank.argsort(dim=1, descending=True, stable=True)[:, : self.tokens_per_step]
        return torch.zeros_like(rank, dtype=torch.bool).scatter(1, best, True)
