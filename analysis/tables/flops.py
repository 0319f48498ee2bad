"""The FLOPs of a run's training."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from dlm.config.budget import flops_of_step
from dlm.config.build import build, rows_of_a_step


def training_flops(config: dict[str, Any], steps: int) -> float | None:
    """The FLOPs of a run's training of `steps` optimizer steps, estimated from its first batches.

    Counts the rows (positions) and attention pairs of every forward, including those of auxiliary losses, of teachers
    and of rollouts, in which the student (at its initial weights) generates its own batch.

    Returns None if the model's layers differ from each other, or if a model or file named in the config is missing.

    The MLP of the last layer is counted for all rows, so that old and new runs stay comparable; `dlm.model.last_layer`
    saves 15 % of the total with clean context and four layers, and 2 % with 28 layers.
    LoRA is counted as full training: not computing the gradients of frozen weights saves at most a third of the work
    of these weights.
    """
    irrelevant = {"seed": 0, "lr": 1.0, "tokens": 0, "budget": {}, "trainable": {"_target_": "dlm.trainable.full.Full"}}
    per_step = step_flops(json.dumps(config | irrelevant | {"optimizer": config["optimizer"] | {"lr": 1.0}}))
    return None if per_step is None else per_step * steps


@cache
def step_flops(config: str) -> float | None:
    """The mean FLOPs of one optimizer step, over all processes and accumulated batches; None as in `training_flops`.

    `config` is JSON, so that runs that differ only in seed or learning rate share the cached result.
    """
    cfg = OmegaConf.create(json.loads(config))
    if "attn_implementation" in cfg.model:
        cfg.model.attn_implementation = "sdpa"  # its dense masks state the attention pairs
    cfg.tokens, cfg.budget = rows_of_a_step(cfg) * cfg.data.length, {"unit": "tokens", "amount": None}
    try:
        experiment = build(cfg)
    except (ValueError, OSError):
        return None
    return flops_of_step(experiment.data, experiment.conversion, experiment.budget.rows)
