"""Ctrl-C and SIGTERM (SLURM's pre-emption) end a run where it can go on: at the end of an optimizer step, after a
checkpoint. A second signal ends it at once, and costs the steps since the last checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Callback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(Callback):
    """A signal that comes during training is a wish, `requested`, that the checkpoints grant. Lightning puts the
    handlers back that were there before it."""

    def __init__(self) -> None:
        self.requested = False

    def on_train_start(self, trainer, module) -> None:
        for number in SIGNALS:
            handle(number, self.hear)

    def hear(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        name = signal.Signals(number).name
        print(f"{name}: stopping after this step (again to stop at once)", file=sys.stderr, flush=True)

    def on_validation_batch_start(self, trainer, *_) -> None:
        if self.requested:  # the weights are those of the last step, and its checkpoint is there or is made again
            raise KeyboardInterrupt


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Within, SIGTERM is Ctrl-C, so that both leave the same record."""
    before = signal.getsignal(signal.SIGTERM)
    handle(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        handle(signal.SIGTERM, before)


def handle(number: int, handler) -> None:
    """`signal.signal`, or nothing outside the main thread, where signals are not heard."""
    try:
        signal.signal(number, handler)
    except ValueError:
        return
