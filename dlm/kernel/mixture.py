"""Mask-to-token and token-to-token together: some hidden tokens become random ones, which the model has to detect and
correct (LLaDA 2.1). With random tokens only, this is uniform diffusion (DiffusionGemma)."""

from __future__ import annotations

import torch

from dlm.kernel.base import Kernel


class Mixture(Kernel):
    """A hidden token becomes a random one with probability `random`, else [MASK]. Set `masking.score=all` to train the
    model on visible tokens, too: it cannot tell a random one from a correct one beforehand."""

    def __init__(self, random: float):
        if not 0 <= random <= 1:
            raise ValueError(f"kernel.random {random} must lie in [0, 1]")
        self.random = random

    def __call__(self, x0, masked, mask_id, generator):
        is_random = torch.rand(x0.shape, generator=generator) < self.random
        random_token = torch.randint(max(mask_id, 1), x0.shape, generator=generator)
        return torch.where(masked, torch.where(is_random, random_token, mask_id), x0)
