"""The model's own one-shot predictions in the place of the masks (DMax, on-policy uniform training): a mask-to-token
model becomes one that mends what it wrote."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlm.model.trim import trim
from dlm.rollout.base import Rollout


class Prediction(Rollout):
    """A batch is either kept with its masks, or, with `probability`, its masks are filled with the argmax of a forward
    without gradient. Set `masking.score=all loss=mean`: a filled token may be right, and the loss is on all of them."""

    def __init__(self, probability: float):
        if not 0 <= probability <= 1:
            raise ValueError(f"rollout.probability {probability} must lie in [0, 1]")
        self.probability = probability

    @torch.no_grad()
    def __call__(self, denoiser, batch, noised, generator):
        if torch.rand((), generator=generator) >= self.probability:
            return batch, noised
        training = denoiser.training
        denoiser.eval()
        inputs, _ = denoiser.inputs(batch, replace(noised, scored=None))
        inputs = trim(inputs, few_shapes=denoiser.compiles)
        predicted = denoiser.predictions(inputs.to(denoiser.model.device)).cpu()
        denoiser.train(training)
        return batch, replace(noised, xt=noised.xt.masked_scatter(noised.masked, predicted))
