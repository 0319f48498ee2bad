"""The metrics of a run over time: `metrics.csv`, one row per optimizer step.

The rows are part of the checkpoint, together with the weights they describe. A run that is killed and resumed therefore
ends with the table of an uninterrupted one: no row is missing, and none comes from a step that was repeated.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, variance
from typing import Any

import pandas as pd
from lightning import Callback

from dlm.runs.storage import write_atomically

MIN_ROWS = 5  # per quarter; with fewer a difference is noise


class MetricTable(Callback):
    """Collects the training metrics of every `every`-th optimizer step and those of every validation. Steps count from
    0; a validation belongs to the row of the step just completed."""

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every
        self.rows: dict[int, dict[str, float]] = {}

    def add(self, step: int, values: dict[str, Any]) -> None:
        self.rows.setdefault(step, {}).update({name: float(value) for name, value in values.items()})

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step != self.step:  # not amid an accumulation
            self.step = trainer.global_step
            if self.step % self.every == 0:
                self.add(self.step - 1, current(trainer, validation=False))

    def on_validation_end(self, trainer, module) -> None:
        self.add(trainer.global_step - 1, current(trainer, validation=True))

    def validated(self, step: int) -> bool:
        """Whether the row of a step holds validation metrics."""
        return any(is_validation(name) for name in self.rows.get(step, {}))

    def last_validation(self) -> dict[str, float]:
        """The metrics of the last validation; {} before the first."""
        return {n: v for step in sorted(self.rows) for n, v in self.rows[step].items() if is_validation(n)}

    def diverged(self) -> bool:
        """Whether training made the loss worse: the NELBO of the last quarter of the rows is not finite, or its mean
        exceeds that of the first quarter by more than three standard errors of their difference (with at least
        `MIN_ROWS` finite rows in each)."""
        nelbo = [self.rows[step]["train/nelbo"] for step in sorted(self.rows) if "train/nelbo" in self.rows[step]]
        quarter = len(nelbo) // 4
        if nelbo and not any(map(math.isfinite, nelbo[-max(quarter, 1) :])):
            return True
        first, last = (
            [v for v in part if math.isfinite(v)] for part in (nelbo[:quarter], nelbo[len(nelbo) - quarter :])
        )
        if min(len(first), len(last)) < MIN_ROWS:
            return False
        error = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
        return mean(last) - mean(first) > 3 * error

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def write(self) -> None:
        table = pd.DataFrame.from_dict(self.rows, orient="index").rename_axis("step").sort_index()
        write_atomically(self.path, table.to_csv())


def is_validation(name: str) -> bool:
    return name.startswith("val/")


def current(trainer, validation: bool) -> dict[str, Any]:
    """The latest logged metrics, either those of validation or those of training."""
    return {name: value for name, value in trainer.callback_metrics.items() if is_validation(name) == validation}
