"""What a run sends to its loggers beside its losses: the learning rate, the speed, the memory, where the loss is."""

from __future__ import annotations

import resource
import time

import torch
from lightning import Callback, Trainer

from dlm.trainer.loss_profile import LossProfile


class Telemetry(Callback):
    """Sends every `every` optimizer steps. It reads from the device as often, when the losses are read as well.

    The time of validations is left out of the speed."""

    def __init__(self, every: int):
        self.every = every

    def on_train_start(self, trainer, module) -> None:
        self.step = self.sent = trainer.global_step
        self.began = time.perf_counter()
        self.profile = LossProfile(module.denoiser.token_shift, module.device)
        module.watch = self.profile.add

    def on_validation_start(self, trainer, module) -> None:
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer, module) -> None:
        self.began += time.perf_counter() - self.paused

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.step:  # amid an accumulation
            return
        self.step = trainer.global_step
        if self.step % self.every:
            return
        values = self.profile.take(lambda sums: trainer.strategy.reduce(sums, reduce_op="sum"))
        now = time.perf_counter()
        tokens = (self.step - self.sent) * tokens_of_a_step(trainer)
        values |= {
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/tokens_per_second": tokens / (now - self.began),
            "train/peak_memory_gb": peak_memory() / 1e9,
        }
        self.sent, self.began = self.step, now
        for logger in trainer.loggers:
            logger.log_metrics(values, self.step - 1)


def tokens_of_a_step(trainer: Trainer) -> int:
    """What one optimizer step trains on, in all processes."""
    data = trainer.datamodule
    return data.batch_size * data.length * trainer.accumulate_grad_batches * trainer.world_size


def peak_memory() -> int:
    """The peak memory in bytes: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
