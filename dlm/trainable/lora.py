"""Low-rank adapters beside frozen matrices."""

from __future__ import annotations

from dlm.trainable.adapters import ADAPTER, ALL, Adapters
from dlm.trainable.base import PARTS, Trainable, linear_layers, parameters_of
from dlm.trainable.gate import gate_of


class Lora(Trainable):
    """LoRA on the linear layers of attention and FFN that `targets` names. `beside` says what stays trainable as a
    whole: some of embedding, norm and head, or with None all that lies in no linear layer of the decoder, which is what
    a conversion needs (Efficient-DLM, Appendix F)."""

    def __init__(
        self,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        targets: str | list[str] = ALL,
        beside: list[str] | None = None,
    ):
        self.adapters, self.beside = Adapters(rank, alpha, dropout, targets), beside
        if beside is not None and not (isinstance(beside, list) and set(map(str, beside)) <= set(PARTS)):
            raise ValueError(f"trainable.beside {beside!r} must be null or a list of {', '.join(PARTS)}")

    def apply(self, model, mask_id):
        if gate_of(model) is not None:
            raise ValueError(
                "the parent has gated adapters, which trainable=lora would be merged with: choose trainable=gated_lora "
                "or trainable=full"
            )
        self.adapted = self.adapters.add(model)
        if self.beside is None:
            frozen = {id(p) for layer in linear_layers(model).values() for p in layer.parameters(recurse=False)}
            whole = {id(p) for p in model.parameters()} - frozen
        else:
            whole = parameters_of(model, self.beside)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(ADAPTER in name or id(parameter) in whole)
        return model

    def merged(self, model):
        """The same function in the parent's own layout. The adapters are gone afterwards."""
        return self.adapted.merge_and_unload()
