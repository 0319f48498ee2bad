"""Masking as in decoding: each position of a block is hidden as often as it is still masked, at that noise level, while
an earlier dLM decodes (`measurement=trace`; Efficient-DLM's Figure 6a instead of its Eq. 2)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dlm.masking.base import Masking


class Learned(Masking):
    """At noise level t, k tokens of a unit are drawn without replacement, position i with about the probability p_i(t)
    of the trace's table. This is order sampling with logistic noise (Rosén 1997): the priority is logit p_i(t) +
    logit u. A table of another block size is read at the same relative position. Biased."""

    unbiased = False

    def __init__(self, trace: str, runs_dir: str, **kwargs):
        super().__init__(**kwargs)
        path = Path(runs_dir).expanduser() / trace
        try:
            measurement = json.loads(path.read_text(encoding="utf-8"))
            table = torch.tensor(measurement["result"]["masked"], dtype=torch.float32)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"masking.trace {str(path)!r} holds no decode trace ({type(error).__name__}): make one with "
                "python -m dlm.measure run=ID measurement=trace, which prints its path"
            ) from error
        if table.ndim != 2 or not ((table > 0) & (table <= 1)).all():
            raise ValueError(f"masking.trace {str(path)!r} is damaged: its probabilities must lie in (0, 1]")
        self.table = table.clamp_max(1 - 1e-4)

    def priority(self, t, offset, length, generator):
        levels, positions = self.table.shape
        level = (t * levels).ceil().long().clamp(1, levels) - 1
        position = offset * positions // length
        u = torch.rand(t.shape, generator=generator).clamp(1e-7, 1 - 1e-7)
        return self.table[level, position].logit() + u.logit()
