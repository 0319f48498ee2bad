"""Estimates the memory of a training step before it runs: its weights, gradients and moments by their numbers, its
activations by tracing the decoder (`dlm.trainer.traced`)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import psutil
import torch
from torch import Tensor

from dlm.conversion.pieces import rows_of_piece
from dlm.model.denoiser import Denoiser
from dlm.model.readout import chunk_bytes
from dlm.model.sharding import sharded_layers
from dlm.trainer.step import Step
from dlm.trainer.traced import traced

GB = 1e9
# The logits of a chunk in the model's type and in float32, their log-softmax, and the gradients of both.
LOGITS_COPIES = 5
# For fragmentation of the allocator and the temporary tensors of single operations.
SLACK = 1.1


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of one training step, by kind of tensor."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        return int(SLACK * sum(asdict(self).values()))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in asdict(self).items())
        return f"{self.total / GB:.2f} GB ({parts})"


@dataclass(frozen=True)
class Plan:
    """Whether to use activation checkpointing, and the memory expected then."""

    checkpointing: bool
    estimate: Estimate


def plan(
    denoiser: Denoiser, step: Step, batch_size: int, limit: int, checkpointing: bool | None = None, pieces: int = 1
) -> Plan:
    """Decide whether a step on `batch_size` rows, in `pieces`, needs activation checkpointing to stay below `limit`
    bytes. `checkpointing` fixes the answer beforehand.

    Raises `ValueError`, naming the fewest pieces and the largest batch that fit, if the step cannot fit, and `Unknown`
    if it cannot be estimated.
    """
    options = [False, True] if checkpointing is None else [checkpointing]
    rows = rows_of_piece(batch_size, pieces)

    def fitting_plan(rows: int, in_pieces: bool) -> Plan | None:
        plans = (Plan(option, estimate(denoiser, step, rows, option, in_pieces)) for option in options)
        return next((p for p in plans if p.estimate.total <= limit), None)

    def most_rows(in_pieces: bool) -> int:  # memory grows with the rows, so bisection finds the most that fit
        return bisect_left(range(1, batch_size), True, key=lambda rows: fitting_plan(rows, in_pieces) is None)

    if fitting := fitting_plan(rows, pieces > 1):
        return fitting
    need = estimate(denoiser, step, rows, options[-1], pieces > 1)
    batch_rows, piece_rows = most_rows(False), most_rows(True)
    same_run = (
        f"runtime.pieces={math.ceil(batch_size / piece_rows)} (the same run, piece by piece) or " if piece_rows else ""
    )
    remedy = (
        f"set {same_run}data.batch_size={batch_rows} trainer.accumulate={math.ceil(batch_size / batch_rows)}"
        if batch_rows
        else "not even data.batch_size=1 does: choose a shorter data.length, trainable=lora or a smaller model"
    )
    raise ValueError(
        f"data.batch_size {batch_size} does not fit: a step needs about {need}, and {limit / GB:.2f} GB are "
        f"available: {remedy} (runtime.memory_gb=N overrules what was found available)"
    )


def estimate(denoiser: Denoiser, step: Step, batch_size: int, checkpointing: bool, in_pieces: bool = False) -> Estimate:
    """The bytes of a step on rows whose tokens are all masked, which is the most that a batch can need. With several
    pieces, accumulated gradients are held in addition; DDP buckets add another copy. Of sharded layers, two are whole
    at a time, one of them gathered ahead, and one with its gradients; their copies for autocast all live until the end
    of the forward. Of matrices in four bits, one has its values at a time."""
    model = denoiser.model
    dtype = step.activations(model)
    layers_of = sharded_layers(model) if step.sharded else []
    in_layers = {id(p) for layer in layers_of for p in layer.parameters()}

    def held(parameters: Iterable[Tensor]) -> int:
        return sum(step.stored(p, dtype) // (step.processes if id(p) in in_layers else 1) for p in parameters)

    trained = [p for p in model.parameters() if p.requires_grad]
    weights = held(model.parameters()) + sum(step.copied(p, dtype) for p in model.parameters())
    trainable = held(trained)
    weights += max((step.dequantised(p, dtype) for p in model.parameters()), default=0)
    if layers_of:
        largest = max(sum(step.stored(p, dtype) for p in layer.parameters()) for layer in layers_of)
        weights, gathered_gradients = weights + 2 * largest, largest
    else:
        gathered_gradients = trainable * (step.processes > 1)
    saved, boundary = traced(denoiser, step, batch_size)
    layers = model.config.get_text_config().num_hidden_layers
    if checkpointing:  # the inputs of all layers, and the activations of one
        saved = layers * boundary + saved // layers
    saved += batch_size * step.images[checkpointing]
    output = model.get_output_embeddings().weight
    chunk = min(batch_size * step.views * step.length * denoiser.row_bytes, chunk_bytes(step.device))
    head = LOGITS_COPIES * chunk + output.requires_grad * output.numel() * 4
    gradients = trainable * (1 + in_pieces) + gathered_gradients
    return Estimate(weights, gradients, 2 * trainable, saved, head)


def available(device: torch.device) -> int:
    """The bytes that this process may hold in total: those free on the device and those it already holds."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss
