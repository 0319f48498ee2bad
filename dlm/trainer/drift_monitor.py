"""Weight drift over the course of training."""

from __future__ import annotations

from typing import Any

import pandas as pd
from lightning import Callback, Trainer

from dlm.evaluation.drift import MEASURES, by_layer, measure, summary
from dlm.trainer.drift_picture import heat_map
from dlm.trainer.metrics import MetricTable
from dlm.trainer.telemetry import tokens_of_a_step


class DriftMonitor(Callback):
    """Measures the drift from the parent's weights (`module.reference`) every `every` optimizer steps, for the metric
    table and the loggers: `drift/<kind>/<measure>`, and for the loggers a table `drift/layers` and a picture of every
    layer's drift so far, `drift/heatmap`. `every=0` turns it off, but for the end of training."""

    def __init__(self, every: int):
        self.every, self.last = every, 0
        self.history: list[dict[str, Any]] = []  # layers × kinds of every measurement

    def on_train_start(self, trainer, module):
        self.last = trainer.global_step

    def on_train_batch_end(self, trainer, module, *_):
        step = trainer.global_step
        if self.every and step and step % self.every == 0 and step != self.last:
            self.last = step
            drift = measure(module.denoiser.model, module.reference)
            for callback in trainer.callbacks:
                if isinstance(callback, MetricTable):
                    callback.add(step - 1, metrics_of(drift))
            self.send(trainer, drift)

    def send(self, trainer: Trainer, drift: pd.DataFrame) -> None:
        """Send the drift of the step just completed to the loggers, unless it was sent."""
        tokens = trainer.global_step * tokens_of_a_step(trainer)
        if any(row["tokens"] == tokens for row in self.history):
            return
        layers = by_layer(drift)[["layer", "kind", *MEASURES]].assign(tokens=tokens)
        self.history += layers.to_dict("records")
        if not trainer.loggers or not trainer.is_global_zero:
            return
        picture = heat_map(pd.DataFrame(self.history))
        for logger in trainer.loggers:
            logger.log_metrics(metrics_of(drift), trainer.global_step - 1)
            logger.log_table("drift/layers", layers)
            logger.log_picture("drift/heatmap", picture, trainer.global_step - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]


def metrics_of(drift: pd.DataFrame) -> dict[str, float]:
    return {f"drift/{name}": value for name, value in summary(drift).items()}
