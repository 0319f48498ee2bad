"""Prepares a batch on the CPU: draws the noise, lays out the streams, and drops positions that no loss depends on."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlm.conversion.objective import Objective
from dlm.loss.nelbo import Nelbo
from dlm.masking.base import Masking
from dlm.model.layout import Layout
from dlm.model.trim import trim
from dlm.types import Batch, Noised, Prepared


def prepare(
    layout: Layout, masking: Masking, batch: Batch, noise: torch.Generator, objective: Objective | None = None
) -> Prepared:
    """Corrupt a batch of B rows and lay out the network's input for an `objective` (on the CPU), by default the bound
    on the likelihood."""
    batch = layout.scorable(batch)
    return lay_out(layout, batch, corrupt(layout, masking, batch, noise), objective or Objective(Nelbo()))


def corrupt(layout: Layout, masking: Masking, batch: Batch, noise: torch.Generator) -> Noised:
    """Draw the noise of a batch: K noised views [B, K·L] of its rows [B, L]."""
    return masking(batch, layout.pattern.units(batch), layout.mask_id, noise)


def lay_out(layout: Layout, batch: Batch, noised: Noised, objective: Objective) -> Prepared:
    """The network's input and targets for a corrupted batch, trimmed to the positions that the objective needs."""
    inputs, scored = layout.inputs(batch, noised)
    scored = replace(scored, loss_weight=objective.loss.weights(batch, noised)[noised.in_loss])
    extra_rows, needs = objective.needs(layout, batch, noised, scored)
    inputs = replace(inputs, scored=torch.cat([inputs.scored, *extra_rows]))
    inputs = trim(inputs, few_shapes=layout.compiles).settled()
    views = noised.xt.shape[1] // batch.x0.shape[1]
    return Prepared(inputs, scored, views * batch.x0.numel(), views * int(batch.targets.sum()), views, needs)
