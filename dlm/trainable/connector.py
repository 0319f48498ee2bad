"""Only the connector between a vision tower and a language model is trained, as after `python -m dlm.compose`."""

from __future__ import annotations

from dlm.trainable.base import CONNECTOR, Trainable, vision_parts


class Connector(Trainable):
    """The connector is trained, and nothing else."""

    def apply(self, model, mask_id):
        model.requires_grad_(False)
        for parameter in vision_parts(model)[CONNECTOR]:
            parameter.requires_grad_(True)
        return model
