"""Compiles the layers of a model for training, and says where torch stops compiling them."""

from __future__ import annotations

import shlex
import shutil
import sys

import torch
from lightning import Callback
from torch._dynamo.utils import counters
from torch._inductor.config import cpp

from dlm.model.denoiser import Denoiser


def compile_layers(denoiser: Denoiser, device: torch.device) -> None:
    """Compile the layers: for a few fixed shapes on a GPU, for dynamic shapes on a CPU. Raises `ValueError` if a CPU
    has no C++ compiler."""
    compiler = shlex.split(cpp.cxx[-1])[0]
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"trainer.compile=true needs a C++ compiler on a CPU and finds no {compiler!r}: install it, name another "
            "with the environment variable CXX, or set trainer.compile=false"
        )
    denoiser.compile(few_shapes=device.type != "cpu")


class CompilerWatch(Callback):
    """Says once, on stderr, if torch has reached its limit of versions of a function. What needs another one runs
    uncompiled from then on: right, but slower."""

    def on_train_start(self, trainer, module) -> None:
        self.before, self.told = limits_reached(), False

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if not self.told and limits_reached() > self.before:
            self.told = True
            print(
                f"from step {trainer.global_step} on some layers run uncompiled, since torch compiles no further "
                "version of them: TORCH_LOGS=recompiles says what differs from step to step",
                file=sys.stderr,
            )


def limits_reached() -> int:
    """How often torch has given up compiling in this process because there were too many versions."""
    return sum(count for reason, count in counters["unimplemented"].items() if "limit exceeded" in reason)
