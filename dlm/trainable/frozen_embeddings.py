"""The layers are trained; the embeddings, input and output, are frozen (REPR-ALIGN, arXiv 2605.06885)."""

from __future__ import annotations

from dlm.trainable.base import Trainable, parameters_of


class FrozenEmbeddings(Trainable):
    """Everything is trained except the input embedding and the output head, tied or not; with `norms` the norms are
    frozen, too. The embedding of a new mask token keeps its initial value, the mean of the others."""

    def __init__(self, norms: bool = False):
        if not isinstance(norms, bool):
            raise ValueError(f"trainable.norms {norms!r} must be true or false (true: norms are frozen as well)")
        self.frozen = ("embedding", "head", "norm") if norms else ("embedding", "head")

    def apply(self, model, mask_id):
        frozen = parameters_of(model, self.frozen)
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)
        return model
