"""Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers of a decoder; a model's weights with and without them."""

from __future__ import annotations

from dataclasses import dataclass

import peft
from torch import Tensor
from transformers import PreTrainedModel

from dlm.trainable.base import linear_layers

ALL = "all-linear"
ADAPTER, BASE = "lora_", ".base_layer."  # in peft's names: of an adapter's weights, and of the layer that it adapts


@dataclass(frozen=True)
class Adapters:
    """Settings of the adapters. `alpha / rank` scales the update. `targets` are ends of names of the decoder's linear
    layers, such as `[q_proj, v_proj]`, or `all-linear`."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str | list[str] = ALL

    def __post_init__(self):
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"trainable.rank {self.rank} must be at least 1")
        if not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"trainable.alpha {self.alpha} must be > 0 and trainable.dropout {self.dropout} must lie in [0, 1)"
            )
        are_names = isinstance(self.targets, list) and self.targets and all(isinstance(t, str) for t in self.targets)
        if self.targets != ALL and not are_names:
            raise ValueError(f"trainable.targets {self.targets!r} must be {ALL} or a list of names of linear layers")

    def add(self, model: PreTrainedModel) -> peft.PeftModel:
        """Add untrained adapters, which leave its outputs unchanged. `ValueError` if it lacks one of the targets."""
        layers = linear_layers(model)
        for target in [] if self.targets == ALL else self.targets:
            if not any(f".{name}".endswith(f".{target}") for name in layers):
                names = sorted({name.rpartition(".")[2] for name in layers})
                raise ValueError(
                    f"trainable.targets {target!r} is no linear layer of the decoder: choose some of {', '.join(names)}"
                )
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.targets
        )
        return peft.get_peft_model(model, config)


def base_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """All weights except the adapters', by their names in the model without adapters."""
    return {name.replace(BASE, "."): t for name, t in model.state_dict().items() if ADAPTER not in name}


def adapter_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the adapters, by their names in the model."""
    return {name: t for name, t in model.state_dict().items() if ADAPTER in name}
