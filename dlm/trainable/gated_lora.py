"""Adapters that make the parent a dLM at mask tokens and leave it the AR model elsewhere (I-DLM's R-ISD)."""

from __future__ import annotations

from dlm.trainable.adapters import ADAPTER, ALL, Adapters
from dlm.trainable.base import Trainable
from dlm.trainable.gate import add_gated, gate_of


class GatedLora(Trainable):
    """LoRA that is active at mask tokens only; nothing else is trained. If the parent already has such adapters (it is
    a run of this kind), training continues with them, so their settings must be equal."""

    adds_weights = True

    def __init__(self, rank: int, alpha: float, dropout: float = 0.0, targets: str | list[str] = ALL):
        self.adapters = Adapters(rank, alpha, dropout, targets)

    def apply(self, model, mask_id):
        gate = gate_of(model)
        if gate is None:
            add_gated(model, mask_id, self.adapters)
        elif gate.adapters != self.adapters:
            raise ValueError(
                f"trainable asks for {self.adapters}, and the parent has {gate.adapters}: set trainable.rank, alpha, "
                "dropout and targets to the parent's"
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(ADAPTER in name)
        return model
