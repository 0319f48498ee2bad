"""Low-rank adapters on frozen matrices."""

from __future__ import annotations

from dlm.trainable.adapters import ADAPTER, ALL, Adapters
from dlm.trainable.base import PARTS, Trainable, linear_layers, parameters_of
from dlm.trainable.gate import gate_of


class Lora(Trainable):
    """LoRA on the linear layers of attention and FFN that `targets` names. `beside` lists the parts that are trained in
    full: some of embedding, norm and head. None trains all weights outside the decoder's linear layers, as a conversion
    needs (Efficient-DLM, Appendix F)."""

    adds_weights = True

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
                "the parent has gated adapters, which trainable=lora would merge: choose trainable=gated_lora "
                "or trainable=full"
            )
        self.adapted = self.adapters.add(model)
        if self.beside is None:
            frozen = {id(p) for layer in linear_layers(model).values() for p in layer.parameters(recurse=False)}
            trained = {id(p) for p in model.parameters()} - frozen
        else:
            trained = parameters_of(model, self.beside)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(ADAPTER in name or id(parameter) in trained)
        return model

    def merged(self, model):
        """The same function in the parent's own layout, with the adapters merged and removed."""
        return self.adapted.merge_and_unload()
