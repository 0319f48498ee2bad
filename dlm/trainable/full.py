"""All weights are trained."""

from __future__ import annotations

from dlm.trainable.base import Trainable


class Full(Trainable):
    """Every weight is trained."""

    def apply(self, model, mask_id):
        return model.requires_grad_(True)
