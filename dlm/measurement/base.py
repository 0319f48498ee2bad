"""What can be measured of a finished run, and how it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from dlm.config.build import make_masking
from dlm.config.finished import FinishedRun
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser


class Subject(FinishedRun):
    """A finished run, and what only measurements ask of one."""

    def with_block_size(self, block_size: int) -> Denoiser:
        """The dLM under its own pattern with another block size."""
        return self.dlm.at(block_size)

    @cached_property
    def masking(self) -> Masking:
        """The masking scheme of training."""
        return make_masking(self.config)


class Measurement(ABC):
    """One way to look at a run; its settings are its constructor's arguments, values that JSON can hold or objects made
    from such. Contract: the same weights and settings give the same result, timings apart."""

    @abstractmethod
    def __call__(self, subject: Subject) -> dict[str, Any]:
        """What was found, as JSON can hold it."""
