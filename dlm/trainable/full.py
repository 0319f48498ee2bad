"""All weights are trained, or all but some parts."""

from __future__ import annotations

from dlm.trainable.base import CONNECTOR, TOWER, Trainable, vision_parts


class Full(Trainable):
    """Every weight is trained, but those of the `frozen` parts of a vision-language model: vision_tower, connector."""

    def __init__(self, frozen: list[str] | None = None):
        self.frozen = frozen or []
        if unknown := set(self.frozen) - {TOWER, CONNECTOR}:
            raise ValueError(f"trainable.frozen {sorted(unknown)} are unknown: choose from {[TOWER, CONNECTOR]}")

    def apply(self, model, mask_id):
        model.requires_grad_(True)
        for part in self.frozen:
            for parameter in vision_parts(model)[part]:
                parameter.requires_grad_(False)
        return model
