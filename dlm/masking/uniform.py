"""Every maskable token of a unit is equally likely to be hidden (MDLM, BD3-LM)."""

from __future__ import annotations

import torch

from dlm.masking.base import Masking


class Uniform(Masking):
    """Uniform masking: the k tokens are a uniform draw without replacement."""

    def priority(self, t, offset, length, generator):
        return torch.rand(t.shape, generator=generator)
