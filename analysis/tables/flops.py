"""What training costs: the FLOPs of a run."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import torch
from omegaconf import OmegaConf

from dlm.config.build import Experiment, build, num_processes, tokens_of_a_step
from dlm.conversion.module import TRAIN_STREAM
from dlm.conversion.prepare import corrupt, lay_out
from dlm.data.packing import collate
from dlm.evaluation.flops import Forwards, Shape, plain_forward, plain_step
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, ModelInputs, Prepared, generator

BATCHES = 8
SCHEDULED = 20  # batches, spread over training, where block sizes or numbers change in its course


def training_flops(config: dict[str, Any], steps: int) -> float | None:
    """The FLOPs of a run's training, from the rows and pairs that its first batches send through the network, with what
    auxiliary losses and rollouts add: rows, forwards of a teacher, the forwards in which the student makes its own
    batch (of the student as it begins). None for models whose layers differ, and where what the config names is gone.

    The last layer's MLP is counted for all rows, so that old and new runs stay comparable; `dlm.model.last_layer`
    leaves out 15 % of the total with clean context and four layers, and 2 % with 28 layers.
    LoRA is counted as full training: the gradients of the frozen weights that it saves are a third of the work of these
    weights at most."""
    alike = {"seed": 0, "lr": 1.0, "tokens": 0, "trainable": {"_target_": "dlm.trainable.full.Full"}}
    of_step = step_flops(json.dumps(config | alike | {"optimizer": config["optimizer"] | {"lr": 1.0}}))
    return None if of_step is None else of_step * steps


@cache
def step_flops(config: str) -> float | None:
    """The FLOPs of one optimizer step; the same for runs that differ in seed or learning rate."""
    cfg = OmegaConf.create(json.loads(config))
    batches = SCHEDULED if cfg.get("block_schedule") or cfg.get("schedule") else BATCHES
    if "attn_implementation" in cfg.model:
        cfg.model.attn_implementation = "sdpa"  # whose masks say which pairs there are
    cfg.tokens = batches * tokens_of_a_step(OmegaConf.merge(cfg, {"tokens": math.inf}))
    try:
        experiment = build(cfg)
    except (ValueError, OSError):
        return None
    if Shape.of(experiment.parent.model) is None:
        return None
    data, total = experiment.data, 0.0
    for i in range(batches):
        noise = generator(cfg.seed, TRAIN_STREAM, 0, i)
        denoiser = experiment.conversion.set_progress((i + 0.5) / batches, noise)
        batch = collate([data.train_rows[i * data.batch_size + j] for j in range(data.batch_size)])
        total += batch_flops(experiment, denoiser, batch, noise)
    return total / batches * cfg.trainer.accumulate * num_processes(cfg)


def batch_flops(experiment: Experiment, denoiser: Denoiser, batch: Batch, noise: torch.Generator) -> float:
    """The FLOPs of a batch under a denoiser with the block size of its step: its forward and backward, and before them
    the rollout that makes it, with its chance."""
    conversion = experiment.conversion
    batch = denoiser.scorable(batch)
    noised, rollout = corrupt(denoiser, conversion.masking, batch, noise), conversion.rollout
    as_it_is = prepared_flops(experiment, lay_out(denoiser, batch, noised, conversion.objective))
    if rollout is None:
        return as_it_is
    chance, rollout.probability = rollout.probability, 1.0
    with Forwards(denoiser.model) as forwards:
        batch, noised = rollout(denoiser, batch, noised, noise)
    rollout.probability = chance
    made = prepared_flops(experiment, lay_out(denoiser, batch, noised, conversion.objective))
    shape = Shape.of(denoiser.model)
    made += plain_forward(shape, forwards.rows, forwards.pairs, forwards.head_rows)
    return chance * made + (1 - chance) * as_it_is


def prepared_flops(experiment: Experiment, prepared: Prepared) -> int:
    """The FLOPs of a prepared batch: of the student, and of what the auxiliary losses add to it."""
    denoiser, objective = experiment.denoiser, experiment.conversion.objective
    total = plain_step(Shape.of(denoiser.model), *read(prepared.inputs), len(prepared.inputs.scored))
    for name, term in objective.auxiliary.items():
        for forward in term.forwards(denoiser, prepared.needs[name]):
            rows_and_pairs = (0, 0) if forward.inputs is None else read(forward.inputs)
            total += plain_forward(Shape.of(forward.denoiser.model), *rows_and_pairs, forward.head_rows)
    return total


def read(inputs: ModelInputs) -> tuple[int, int]:
    """The rows of a forward, and the pairs of them that see each other."""
    rows = inputs.rows
    seen = inputs.pattern.visible(rows.map(lambda t: t[:, :, None]), rows.map(lambda t: t[:, None, :]))
    return inputs.input_ids.numel(), int(seen.sum())
