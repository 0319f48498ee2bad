"""t ~ U(t_min, t_max]; some recipes train on a narrow band of levels (BD3-LM, LLaDA 2.0)."""

from __future__ import annotations

import torch

from dlm.noise_level.base import NoiseLevel


class Uniform(NoiseLevel):
    """Stratified over the units of a batch, one stratum each, for less variance.

    The strata are in random order. In the order of the blocks, as in an "antithetic" sampler over a batch of one row,
    t would grow with the block's index, and the model would never see late blocks with little noise.
    """

    def __call__(self, units, t_min, t_max, generator):
        num = len(units.size)
        stratum = torch.randperm(num, generator=generator)
        u = (stratum + 1 - torch.rand(num, generator=generator)) / max(num, 1)
        return t_min + (t_max - t_min) * u
