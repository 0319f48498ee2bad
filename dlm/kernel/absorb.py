"""The absorbing kernel: a hidden token becomes [MASK] (MDLM, and nearly every recipe)."""

from __future__ import annotations

import torch

from dlm.kernel.base import Kernel


class Absorb(Kernel):
    """Every hidden token becomes [MASK]; no random numbers are drawn."""

    def __call__(self, x0, masked, mask_id, generator):
        return torch.where(masked, mask_id, x0)
