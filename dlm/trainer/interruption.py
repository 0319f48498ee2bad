"""Ctrl-C, SIGTERM and the signals by which SLURM warns of a pre-emption or of the end of a job's time stop a run where
it can be resumed: after the current optimizer step, once its checkpoint is written. A second signal stops it at once
and loses the steps since the last checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning import Callback

# SLURM's `--signal=USR1@120` or USR2. A launcher that handles one of them, as submitit does, keeps it.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


class Interruption(Callback):
    """Turns the first signal during training into `requested`, on which `Checkpoints` saves and stops. Lightning
    restores the previous handlers after training."""

    def __init__(self) -> None:
        self.requested = False

    def on_train_start(self, trainer, module) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, *WARNINGS):
            if number not in WARNINGS or is_ours(number):
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
    """A context in which SIGTERM and SLURM's warnings raise `KeyboardInterrupt` as Ctrl-C does, so that all leave the
    same record."""
    caught = [signal.SIGTERM, *(number for number in WARNINGS if is_ours(number))]
    previous = {number: signal.getsignal(number) for number in caught}
    for number in caught:
        set_handler(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            set_handler(number, handler)


def is_ours(number: int) -> bool:
    """Whether nobody else handles a signal."""
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def set_handler(number: int, handler) -> None:
    """`signal.signal`; does nothing outside the main thread, where Python allows no handlers."""
    try:
        signal.signal(number, handler)
    except ValueError:
        return
