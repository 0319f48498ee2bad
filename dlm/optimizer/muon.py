"""Muon for the matrices of the layers, AdamW for the rest: embeddings, head, norms and biases."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers.modeling_layers import GradientCheckpointingLayer

from dlm.optimizer.base import WithCosine


class Both(torch.optim.Optimizer):
    """Two optimizers of disjoint parameters as one, whose groups and state are theirs.

    Lightning's automatic optimisation, checkpoints and schedules take one optimizer.
    """

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer):
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.parts = {first: len(first.param_groups), second: len(second.param_groups)}

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = iter(self.param_groups)
        for part, num_groups in self.parts.items():
            # Given at every step, as loading a checkpoint replaces both.
            part.state, part.param_groups = self.state, list(islice(groups, num_groups))
            part.step()
        return loss


class ProductsInFloat32(TorchFunctionMode):
    """Multiplies bf16 matrices of a CPU in float32 and rounds the result, which is what bf16 units do.

    Most CPUs have no such units, and torch then takes 20 to 80 times as long for a bf16 product as for one in float32.
    On those that have them, the same numbers are worth more than the time. It knows the calls of torch's Muon: matrices
    come first, and nothing else without its name.
    """

    PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.addmm)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.PRODUCTS and args[0].dtype == torch.bfloat16 and args[0].device.type == "cpu":
            return func(*(matrix.float() for matrix in args), **kwargs).bfloat16()
        return func(*args, **kwargs)


class Muon(torch.optim.Muon):
    """torch's Muon, which orthogonalises updates in bf16, at the speed of float32 on a CPU."""

    def step(self) -> None:
        with ProductsInFloat32():
            super().step()


class MuonCosine(WithCosine):
    """Muon at the learning rate `lr`, which is scaled so that an update is as large as one of AdamW, and AdamW at
    `adamw_lr`. `momentum` is Muon's, `betas` are AdamW's."""

    reads_whole_matrices = True

    def __init__(self, adamw_lr: float, momentum: float, betas: tuple[float, float], **kwargs: Any):
        super().__init__(**kwargs)
        if not adamw_lr > 0:
            raise ValueError(f"optimizer.adamw_lr {adamw_lr} must be > 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"optimizer.momentum {momentum} must lie in [0, 1)")
        self.adamw_lr, self.momentum, self.betas = adamw_lr, momentum, betas

    def optimizer(self, model):
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        hidden = {p: None for layer in layers for p in layer.parameters() if p.requires_grad and p.ndim == 2}
        others = self.by_rate(model, (p for p in model.parameters() if p.requires_grad and p not in hidden))
        muon = Muon(
            [{"params": parameters} | rate for parameters, rate in self.by_rate(model, hidden)],
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        groups = [group | rate for parameters, rate in others for group in self.decayed(parameters)]
        return Both(muon, torch.optim.AdamW(groups, lr=self.adamw_lr, betas=self.betas))
