"""What training costs: FLOPs of a run, and runs compared where they had cost the same."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from analysis.results import Results
from dlm.bench.flops import Shape, plain_step
from dlm.build import build, tokens_of_a_step
from dlm.conversion import TRAIN_STREAM
from dlm.data.packing import collate
from dlm.prepare import prepare
from dlm.types import generator

BATCHES = 8


def training_flops(config: dict[str, Any], steps: int) -> float | None:
    """The FLOPs of a run's training, from the rows and pairs that its first batches send through the network; None for
    models whose layers differ, and where what the config names is gone. LoRA is counted as full training: the gradients
    of the frozen weights that it saves are a third of the work of these weights at most."""
    alike = {"seed": 0, "lr": 1.0, "tokens": 0, "trainable": {"_target_": "dlm.trainable.Full"}}
    of_step = step_flops(json.dumps(config | alike | {"optimizer": config["optimizer"] | {"lr": 1.0}}))
    return None if of_step is None else of_step * steps


@cache
def step_flops(config: str) -> float | None:
    """The FLOPs of one optimizer step; the same for runs that differ in seed or learning rate."""
    cfg = OmegaConf.create(json.loads(config))
    cfg.tokens = BATCHES * tokens_of_a_step(OmegaConf.merge(cfg, {"tokens": math.inf}))
    try:
        experiment = build(cfg)
    except (ValueError, OSError):
        return None
    shape = Shape.of(experiment.parent.model)
    if shape is None:
        return None
    total, data = 0, experiment.data
    for i in range(BATCHES):
        noise = generator(cfg.seed, TRAIN_STREAM, 0, i)
        batch = collate([data.train_rows[i * data.batch_size + j] for j in range(data.batch_size)])
        prepared = prepare(experiment.denoiser, experiment.conversion.masking, batch, noise)
        rows = prepared.inputs.rows
        seen = experiment.denoiser.pattern.visible(rows.map(lambda t: t[:, :, None]), rows.map(lambda t: t[:, None, :]))
        total += plain_step(shape, prepared.inputs.input_ids.numel(), int(seen.sum()), len(prepared.scored.target))
    return float(total / BATCHES * cfg.trainer.accumulate)


def training_curves(results: Results, sweep: str, metric: str = "val/nelbo") -> pd.DataFrame:
    """`point, seed, run, tokens, flops, value` of a metric at every validation."""
    found = results.of("curves", sweep)
    found = found[found["metric"] == metric]
    share = found["tokens"].astype(float) / found["tokens_of_run"].astype(float)
    found = found.assign(flops=found["train_flops"].astype(float) * share)
    return found[["point", "label", "seed", "run", "tokens", "flops", "value"]]


def at_equal_flops(curves: pd.DataFrame) -> dict[str, float]:
    """Point → the metric, mean over its runs, where each had used the FLOPs of the cheapest run of all."""
    known = curves.dropna(subset=["flops", "value"])
    if known.empty:
        return {}
    budget = known.groupby("run")["flops"].max().min()
    at = {
        (point, run): np.interp(budget, *run_curve(group)) if group["flops"].min() <= budget else np.nan
        for (point, run), group in known.groupby(["point", "run"])
    }
    values = pd.Series(at, dtype=float)
    return values.groupby(level=0).mean().dropna().to_dict() if len(values) else {}


def run_curve(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and values of one run in order."""
    ordered = rows.sort_values("flops")
    return ordered["flops"].to_numpy(), ordered["value"].to_numpy()
