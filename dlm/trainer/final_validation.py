"""Validates the trained model. Validations are scheduled every few steps, so the last of them can lie long before the
end of a run."""

from __future__ import annotations

import torch
from lightning import Callback

from dlm.trainer.metrics import MetricTable, is_validation


class FinalValidation(Callback):
    """Computes `metrics`, those of the validation after the last step. The record holds them as `val/nelbo_final` and
    so on; `val/nelbo` is that of the last scheduled validation. It adds no row to the metrics and leaves the random
    state of training alone."""

    def __init__(self, table: MetricTable):
        self.table = table

    def on_train_end(self, trainer, module) -> None:
        last = trainer.global_step - 1
        if self.table.validated(last):
            self.metrics = {n: value for n, value in self.table.rows[last].items() if is_validation(n)}
            return
        trainer.validating = True
        module.eval()
        module.on_validation_epoch_start()
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            for batch_idx, batch in enumerate(trainer.datamodule.val_dataloader()):
                pieces = module.on_before_batch_transfer(batch, 0)
                module.validation_step(module.transfer_batch_to_device(pieces, module.device, 0), batch_idx)
        # Rounded to float32, as Lightning rounds what it logs.
        self.metrics = {name: torch.tensor(value).item() for name, value in module.val_metrics().items()}
        module.train()
        trainer.training = True
