"""Weight drift over the course of training."""

from __future__ import annotations

from lightning import Callback

from dlm.evaluation.drift import measure, summary
from dlm.trainer.metrics import MetricTable


class DriftMonitor(Callback):
    """Logs the drift every `every` optimizer steps as `drift/<kind>/<measure>`, and adds it to the table of metrics.
    The module knows where the parent's weights are (`reference`)."""

    def __init__(self, every: int):
        self.every, self.last = every, 0

    def on_train_start(self, trainer, module):
        self.last = trainer.global_step

    def on_train_batch_end(self, trainer, module, *_):
        step = trainer.global_step
        if self.every and step and step % self.every == 0 and step != self.last:
            self.last = step
            found = {f"drift/{k}": v for k, v in summary(measure(module.denoiser.model, module.reference)).items()}
            for table in trainer.callbacks:
                if isinstance(table, MetricTable):
                    table.add(step - 1, found)
            for logger in trainer.loggers:
                logger.log_metrics(found, step - 1)  # with the other metrics of the step that was just made
