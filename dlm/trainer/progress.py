"""The progress of training on the screen, or in a log."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Shows steps, ETA, tokens/s and the losses: on a terminal in one line that changes, else (in a file, under SLURM)
    in a line of its own for every step that is logged."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self.in_lines = not sys.stdout.isatty()
        if self.in_lines:
            self.disable()

    def on_train_start(self, trainer, module) -> None:
        super().on_train_start(trainer, module)
        self.began, self.first, self.step = time.perf_counter(), module.micro_batches, trainer.global_step
        self.first_step = self.step
        self.on_train_epoch_start(trainer, module)  # Lightning does not call it in a run that resumes within its epoch

    def on_train_epoch_start(self, trainer, module) -> None:
        super().on_train_epoch_start(trainer, module)
        self.train_progress_bar.set_description("training")

    def on_train_batch_end(self, trainer, module, *args) -> None:
        super().on_train_batch_end(trainer, module, *args)
        if trainer.global_step == self.step:  # amid an accumulation
            return
        self.step = trainer.global_step
        if self.in_lines and trainer.is_global_zero and self.step % trainer.log_every_n_steps == 0:
            print(self.line(trainer, module), flush=True)

    def line(self, trainer, module) -> str:
        """`step 40 of 128, 0:01:12 left, tok/s 1203, train/nelbo 3.214`"""
        seconds = (time.perf_counter() - self.began) / (self.step - self.first_step) * (trainer.max_steps - self.step)
        metrics = self.get_metrics(trainer, module).items()
        shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics)
        left = timedelta(seconds=round(seconds))
        return ", ".join([f"step {self.step:,} of {trainer.max_steps:,}", f"{left} left", *shown])

    def get_metrics(self, trainer, module) -> dict:
        metrics = super().get_metrics(trainer, module)
        metrics.pop("v_num", None)
        rows = trainer.datamodule.batch_size * (module.micro_batches - self.first) * trainer.world_size
        rate = rows * trainer.datamodule.length / (time.perf_counter() - self.began)
        return {"tok/s": f"{rate:.0f}"} | metrics
