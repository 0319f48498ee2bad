"""The validation of the result. Scheduled validations come every so many steps, so the last of them can lie long before
the end of a run."""

from __future__ import annotations

import torch
from lightning import Callback

from dlm.trainer.metrics import MetricTable


class FinalValidation(Callback):
    """`nelbo`: what `val/nelbo` is after the last step, in nats per maskable token. It is `val/nelbo_final` in the
    record, where `val/nelbo` stays that of the last scheduled validation, so that runs of all times compare. It is no
    step of the metrics, draws no randomness, and so changes nothing else."""

    def __init__(self, table: MetricTable):
        self.table = table

    def on_train_end(self, trainer, module) -> None:
        last = trainer.global_step - 1
        if self.table.validated(last):
            self.nelbo = self.table.rows[last]["val/nelbo"]
            return
        trainer.validating = True
        module.eval()
        module.on_validation_epoch_start()
        with torch.inference_mode(), trainer.precision_plugin.val_step_context():
            for number, batch in enumerate(trainer.datamodule.val_dataloader()):
                pieces = module.on_before_batch_transfer(batch, 0)
                module.validation_step(module.transfer_batch_to_device(pieces, module.device, 0), number)
        self.nelbo = torch.tensor(module.val_nelbo()).item()  # rounded, as what Lightning logs
        module.train()
        trainer.training = True
