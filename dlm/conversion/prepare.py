"""What happens to a batch on the CPU before a step: noise is drawn, the streams are laid out, what nobody reads is left
out."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlm.conversion.objective import Objective
from dlm.loss.nelbo import Nelbo
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.trim import trim
from dlm.types import Batch, Noised, Prepared


def prepare(
    denoiser: Denoiser, masking: Masking, batch: Batch, noise: torch.Generator, objective: Objective | None = None
) -> Prepared:
    """Corrupt a batch and lay out for the network what it has to read for an `objective` (on the CPU); by default the
    bound on the likelihood."""
    batch = denoiser.scorable(batch)
    return lay_out(denoiser, batch, corrupt(denoiser, masking, batch, noise), objective or Objective(Nelbo()))


def corrupt(denoiser: Denoiser, masking: Masking, batch: Batch, noise: torch.Generator) -> Noised:
    """Draw the noise of a batch."""
    return masking(batch, denoiser.pattern.units(batch), denoiser.mask_id, noise)


def lay_out(denoiser: Denoiser, batch: Batch, noised: Noised, objective: Objective) -> Prepared:
    """A corrupted batch as the network reads it."""
    inputs, scored = denoiser.inputs(batch, noised)
    scored = replace(scored, loss_weight=objective.loss.weights(batch, noised)[noised.in_loss])
    rows, needs = objective.needs(denoiser, batch, noised, scored)
    inputs = replace(inputs, scored=torch.cat([inputs.scored, *rows]))
    inputs = trim(inputs, few_shapes=denoiser.compiles).settled()
    views = noised.xt.shape[1] // batch.x0.shape[1]
    return Prepared(inputs, scored, views * batch.x0.numel(), views * int(batch.maskable.sum()), views, needs)
