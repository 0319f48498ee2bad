"""The FLOPs of training, by the rows and pairs that its forwards read, those of auxiliary losses and rollouts too, and
of the vision tower and its connector as they are executed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dlm.conversion.module import Conversion
from dlm.conversion.preparation import TRAIN_STREAM
from dlm.conversion.prepare import corrupt, lay_out
from dlm.model.denoiser import Denoiser
from dlm.model.flops import Forwards, Shape, plain_forward, plain_step
from dlm.model.tower import image_flops
from dlm.types import Batch, ModelInputs, Prepared, generator

BATCHES = 8
SCHEDULED = 20  # batches, spread over training, if a schedule changes the block size or other values


def micro_batch_flops(conversion: Conversion, micro_batch: Callable[[int], Batch], seed: int) -> float | None:
    """The mean FLOPs of a micro-batch, from the first ones of the first process; a rollout is made by the model as it
    is. None if the model's layers differ, or if a rollout makes forwards whose masks are not dense (sdpa)."""
    model = conversion.denoiser.model
    if Shape.of(model) is None or (conversion.rollout and model.config._attn_implementation != "sdpa"):
        return None
    batches, total = SCHEDULED if conversion.block_schedule or conversion.schedules else BATCHES, 0.0
    for i in range(batches):
        noise = generator(seed, TRAIN_STREAM, 0, i)
        denoiser = conversion.preparation.scheduled((i + 0.5) / batches, noise)
        total += batch_flops(conversion, denoiser, micro_batch(i), noise)
    return total / batches


def batch_flops(conversion: Conversion, denoiser: Denoiser, batch: Batch, noise: torch.Generator) -> float:
    """The expected FLOPs of a batch under a denoiser with the block size of its step: forward and backward, plus the
    rollout weighted by its probability."""
    batch = denoiser.scorable(batch)
    noised, rollout = corrupt(denoiser, conversion.masking, batch, noise), conversion.rollout
    without_rollout = prepared_flops(conversion, lay_out(denoiser, batch, noised, conversion.objective))
    if rollout is None:
        return without_rollout
    probability, rollout.probability = rollout.probability, 1.0
    with Forwards(denoiser.model) as forwards:
        batch, noised = rollout(denoiser, batch, noised, noise)
    rollout.probability = probability
    with_rollout = prepared_flops(conversion, lay_out(denoiser, batch, noised, conversion.objective))
    shape = Shape.of(denoiser.model)
    with_rollout += plain_forward(shape, forwards.rows, forwards.pairs, forwards.head_rows)
    with_rollout += sum(image_flops(denoiser.model, pictured, trained=False) for pictured in forwards.pictured)
    return probability * with_rollout + (1 - probability) * without_rollout


def prepared_flops(conversion: Conversion, prepared: Prepared) -> int:
    """The FLOPs of a prepared batch: the student's training step plus the forwards of the auxiliary losses."""
    denoiser, objective, inputs = conversion.denoiser, conversion.objective, prepared.inputs
    model = denoiser.model
    frozen = not any(p.requires_grad for p in model.get_decoder().parameters())
    total = plain_step(Shape.of(model), *count_pairs(inputs), len(inputs.scored), frozen)
    total += image_flops(model, inputs.pictured, trained=True)
    for name, term in objective.auxiliary.items():
        for forward in term.forwards(denoiser, prepared.needs[name]):
            model, inputs = forward.denoiser.model, forward.inputs
            size = (0, 0) if inputs is None else count_pairs(inputs)
            total += plain_forward(Shape.of(model), *size, forward.head_rows)
            total += 0 if inputs is None else image_flops(model, inputs.pictured, trained=False)
    return total


def count_pairs(inputs: ModelInputs) -> tuple[int, int]:
    """The number of rows of a forward, and of (query, key) pairs that the attention pattern allows."""
    pairs = 0
    for n in range(len(inputs.input_ids)):  # one at a time: a long row has many pairs
        rows = inputs.rows[n]
        pairs += int(inputs.pattern.visible(rows[:, None], rows[None]).sum())
    return inputs.input_ids.numel(), pairs
