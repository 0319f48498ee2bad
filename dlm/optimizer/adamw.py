"""AdamW with weight decay on matrices only."""

from __future__ import annotations

from typing import Any

import torch

from dlm.optimizer.base import WithCosine


class AdamWCosine(WithCosine):
    """AdamW for all trainable parameters."""

    def __init__(self, betas: tuple[float, float], fused: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.betas, self.fused = betas, fused

    def optimizer(self, model):
        trainable = self.by_rate(model, (p for p in model.parameters() if p.requires_grad))
        groups = [group | rate for parameters, rate in trainable for group in self.decayed(parameters)]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=self.fused)
