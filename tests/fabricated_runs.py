"""Finished runs as `dlm.train` leaves them, without training."""

from pathlib import Path

import numpy as np
import pandas as pd
from study_tables import correct

from analysis.plan.sweep import load_sweep
from analysis.tables.collect import FLOPS
from dlm.data.tasks import FAMILIES
from dlm.evaluation.drift import MEASURES
from dlm.runs.run import Run

SWEEP = "two"
N = 90  # items of a fabricated run
TWO = """
title: two
points:
  f: {label: shifted, overrides: [attention=block, token_shift=true]}
  g: {label: plain, overrides: [attention=block, token_shift=false, masking=position, masking.half_life=0.25]}
evaluations:
  masked: {points: [g], overrides: [measurement=masked], grid: {measurement.draws: [10, 20]}}
  again: {points: [g], overrides: [measurement=masked, measurement.draws=20]}
"""


def fabricate(runs_dir, point, accuracy: float) -> Run:
    """A finished run as `dlm.train` leaves it."""
    run = Run(runs_dir / point.run)
    run.folder.mkdir(parents=True)
    items = {"family": np.resize(list(FAMILIES), N), "setting": "1 token/step", "correct": correct(accuracy, N)}
    items |= {"answer_tokens": 4}
    pd.DataFrame(items).to_csv(run.folder / "items.csv", index=False)
    kinds = [(layer, kind) for layer in range(2) for kind in ("attention", "ffn")]
    tensors = [
        {"tensor": f"{k}{i}", "layer": i, "kind": k, "numel": 10} | dict.fromkeys(MEASURES, 0.1) for i, k in kinds
    ]
    pd.DataFrame(tensors).to_csv(run.folder / "drift.csv", index=False)
    pd.DataFrame({"step": [4, 9], "val/nelbo": [3.0, 2.0]}).to_csv(run.folder / "metrics.csv", index=False)
    (run.folder / FLOPS).write_text("1e12")

    def measured(value: float) -> dict:
        setting = {"accuracy": value, "low": value - 0.05, "high": value + 0.05, "n": N, "tpf": 1.0, "nfe": 7.0}
        families = {f: {"accuracy": round(10 * value) / 10, "n": N // len(FAMILIES)} for f in FAMILIES}
        generation = [setting | {"name": "1 token/step", "threshold": None, "families": families}]
        likelihood = {"nats": 2.0, "standard_error": 0.1, "bits_per_byte": 1.0, "tokens": 12_700}
        return {"likelihood": likelihood, "cloze": 0.5, "cloze_items": 100, "generation": generation}

    evaluation = {"settings": point.evaluated_with, "parent": measured(0.95), "dlm": measured(accuracy)}
    evaluation["throughput"] = {"parent": 100.0, "1 token/step": 80.0}
    run.update(
        status="finished",
        config=point.config,
        evaluation=evaluation,
        drift={f"{kind}/{m}": 0.1 for kind in ("attention", "ffn") for m in MEASURES},
        train={"val/nelbo": 2.0},
        tokens=1000,
        steps=10,
        train_seconds=60.0,
        ended=1.8e9,
        commit="abc",
        versions={"python": "3"},
        machine={"cpus": 2, "platform": "somewhere"},
        parent={"source": "tiny", "fingerprint": "f00"},
        parameters=1_115_520,
    )
    return run


def write_sweep(folder: Path) -> Path:
    """A folder with one sweep."""
    folder.mkdir()
    (folder / f"{SWEEP}.yaml").write_text(TWO)
    return folder


def found(sweeps):
    """The points of the first seed by name."""
    return {p.name: p for p in reversed(load_sweep(sweeps / f"{SWEEP}.yaml", ["seed=0"]).points)}
