"""Weight drift over the course of training."""

from __future__ import annotations

from lightning import Callback

from dlm.evaluation.drift import measure, summary
from dlm.trainer.metrics import MetricTable


class DriftMonitor(Callback):
    """Logs the drift from the parent's weights (`module.reference`) every `every` optimizer steps, as
    `drift/<kind>/<measure>`, to the loggers and the metric table. `every=0` turns it off."""

    def __init__(self, every: int):
        self.every, self.last = every, 0

    def on_train_start(self, trainer, module):
        self.last = trainer.global_step

    def on_train_batch_end(self, trainer, module, *_):
        step = trainer.global_step
        if self.every and step and step % self.every == 0 and step != self.last:
            self.last = step
            metrics = {f"drift/{k}": v for k, v in summary(measure(module.denoiser.model, module.reference)).items()}
            for callback in trainer.callbacks:
                if isinstance(callback, MetricTable):
                    callback.add(step - 1, metrics)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step - 1)  # beside the other metrics of the step just completed
