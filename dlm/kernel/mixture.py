"""Mask-to-token and token-to-token together: some hidden tokens become random ones, which the model has to find and
mend (LLaDA 2.1). With no masks at all it is uniform diffusion (DiffusionGemma)."""

from __future__ import annotations

import torch

from dlm.kernel.base import Kernel


class Mixture(Kernel):
    """A hidden token becomes a random one with probability `random`, else [MASK]. Set `masking.score=all` for a model
    that is to know of a visible token whether it is right: a random one may look like any other."""

    def __init__(self, random: float):
        if not 0 <= random <= 1:
            raise ValueError(f"kernel.random {random} must lie in [0, 1]")
        self.random = random

    def __call__(self, x0, masked, mask_id, generator):
        is_random = torch.rand(x0.shape, generator=generator) < self.random
        other = torch.randint(max(mask_id, 1), x0.shape, generator=generator)
        return torch.where(masked, torch.where(is_random, other, mask_id), x0)
