"""Ctrl-C and SIGTERM (SLURM's pre-emption) stop a run where it can be resumed: after the current optimizer step, once
its checkpoint is written. A second signal stops it at once and loses the steps since the last checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Callback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(Callback):
    """Turns the first signal during training into `requested`, on which `Checkpoints` saves and stops. Lightning
    restores the previous handlers after training."""

    def __init__(self) -> None:
        self.requested = False

    def on_train_start(self, trainer, module) -> None:
        for number in SIGNALS:
            set_handler(number, self.on_signal)

    def on_signal(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        name = signal.Signals(number).name
        print(f"{name}: stopping after this step (again to stop at once)", file=sys.stderr, flush=True)

    def on_validation_batch_start(self, trainer, *_) -> None:
        if self.requested:  # validation changes no weight, so the last checkpoint is enough to resume from
            raise KeyboardInterrupt


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """A context in which SIGTERM raises `KeyboardInterrupt` as Ctrl-C does, so that both leave the same record."""
    previous = signal.getsignal(signal.SIGTERM)
    set_handler(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        set_handler(signal.SIGTERM, previous)


def set_handler(number: int, handler) -> None:
    """`signal.signal`; does nothing outside the main thread, where Python allows no handlers."""
    try:
        signal.signal(number, handler)
    except ValueError:
        return
