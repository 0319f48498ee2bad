"""The progress bar of training."""

from __future__ import annotations

import time

from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Shows steps, ETA, tokens/s and the losses in one line."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def on_train_start(self, trainer, module) -> None:
        super().on_train_start(trainer, module)
        self.began, self.first = time.perf_counter(), module.micro_batches
        self.on_train_epoch_start(trainer, module)  # Lightning does not call it in a run that resumes within its epoch

    def on_train_epoch_start(self, trainer, module) -> None:
        super().on_train_epoch_start(trainer, module)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer, module) -> dict:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        rows = trainer.datamodule.batch_size * (module.micro_batches - self.first) * trainer.world_size
        rate = rows * trainer.datamodule.length / (time.perf_counter() - self.began)
        return {"tok/s": f"{rate:.0f}"} | metrics
