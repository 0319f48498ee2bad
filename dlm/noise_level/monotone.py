"""t grows from block to block of a document: the later a block in the decoding pipeline, the less is decoded (D2F)."""

from __future__ import annotations

import torch

from dlm.noise_level.base import NoiseLevel


class Monotone(NoiseLevel):
    """t_1 ~ U(t_min, t_max) and t_{b+1} = t_b + u_b (t_max - t_1) / (n - 1), u_b ~ U(0, 1), for the n units of a
    document: on average the last reaches half way from t_1 to `t_max`."""

    def __call__(self, units, t_min, t_max, generator):
        u = torch.rand(len(units.size), generator=generator)
        levels = torch.empty_like(u)
        for document in units.document.unique():
            members = (units.document == document).nonzero()[:, 0]
            first = t_min + (t_max - t_min) * u[members[0]]
            steps = torch.cat([torch.zeros(1), u[members[1:]]]) * (t_max - first) / max(len(members) - 1, 1)
            levels[members] = first + steps.cumsum(0)
        return levels
