"""Low-rank adapters (LoRA, arXiv 2106.09685) on linear layers of a decoder, and the weights of either kind."""

from __future__ import annotations

from dataclasses import dataclass

import peft
from torch import Tensor
from transformers import PreTrainedModel

from dlm.trainable.base import linear_layers

ALL = "all-linear"
ADAPTER, BASE = "lora_", ".base_layer."  # how peft names an adapter's weights, and those of the layer that it adapts


@dataclass(frozen=True)
class Adapters:
    """`rank` and `alpha` (the update is scaled by alpha / rank) of adapters on the linear layers of the decoder whose
    names end in one of `targets`, `[q_proj, v_proj]`, or on all of them."""

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
        named = isinstance(self.targets, list) and self.targets and all(isinstance(t, str) for t in self.targets)
        if self.targets != ALL and not named:
            raise ValueError(f"trainable.targets {self.targets!r} must be {ALL} or a list of names of linear layers")

    def add(self, model: PreTrainedModel) -> peft.PeftModel:
        """Put the adapters into the model; they change nothing yet. `ValueError` for targets that it does not have."""
        layers = linear_layers(model)
        for target in [] if self.targets == ALL else self.targets:
            if not any(f".{name}".endswith(f".{target}") for name in layers):
                known = sorted({name.rpartition(".")[2] for name in layers})
                raise ValueError(
                    f"trainable.targets {target!r} is no linear layer of the decoder: choose some of {', '.join(known)}"
                )
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.targets
        )
        return peft.get_peft_model(model, config)


def own_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights that are not adapters', by the names that they have without adapters."""
    return {name.replace(BASE, "."): t for name, t in model.state_dict().items() if ADAPTER not in name}


def adapter_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of the adapters, by their names in the model."""
    return {name: t for name, t in model.state_dict().items() if ADAPTER in name}
