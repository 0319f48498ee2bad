"""t ~ U(t_min, t_max], clipped where a recipe trains on a band of levels only (BD3-LM, LLaDA 2.0)."""

from __future__ import annotations

import torch

from dlm.noise_level.base import NoiseLevel


class Uniform(NoiseLevel):
    """Stratified over the units of a batch, one stratum each, for less variance.

    The strata are in random order. Taken in the order of the blocks, as an "antithetic" sampler over a batch of one row
    does, t would grow with the block's index, and late blocks would never be seen with little noise.
    """

    def __call__(self, units, t_min, t_max, generator):
        num = len(units.size)
        stratum = torch.randperm(num, generator=generator)
        u = (stratum + 1 - torch.rand(num, generator=generator)) / max(num, 1)
        return t_min + (t_max - t_min) * u
