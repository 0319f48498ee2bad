"""Which weights a conversion may change: all of them, or low-rank adapters beside frozen matrices."""

from __future__ import annotations

import peft
from transformers import PreTrainedModel


class Full:
    """Every weight is trained."""

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.requires_grad_(True)

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        return model


class Lora:
    """LoRA on every linear layer of attention and FFN; embeddings, norms, biases of norms and the head stay trainable
    (Efficient-DLM, Appendix F)."""

    def __init__(self, rank: int, alpha: float, dropout: float = 0.0):
        if rank < 1:
            raise ValueError(f"trainable.rank {rank} must be at least 1")
        self.config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        self.adapted = peft.get_peft_model(model, self.config)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name or ".base_layer." not in name)
        return model

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """The same function in the parent's own layout. The adapters are gone afterwards."""
        return self.adapted.merge_and_unload()
