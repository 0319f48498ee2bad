"""The model's own one-step predictions replace the masks (DMax, on-policy uniform training), so that it learns to
correct its own errors."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlm.model.trim import trim
from dlm.rollout.base import Rollout


class Prediction(Rollout):
    """With `probability`, the masks of a batch are filled with the argmax of a forward without gradient. Set
    `masking.score=all loss=mean`: a filled token may be correct or wrong, and the loss is on all tokens."""

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
