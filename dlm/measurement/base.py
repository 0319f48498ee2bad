"""The interface of measurements of a finished run."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from dlm.config.build import make_masking
from dlm.config.finished import FinishedRun
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser

T = TypeVar("T")


class Subject(FinishedRun):
    """A finished run with the objects that only measurements need."""

    def once(self, what: Any, compute: Callable[[], T]) -> T:
        """The result of `compute`, which depends on the run and on the settings `what` alone; they can be pickled.
        Measurements of one run often need the same, such as how many tokens per forward each threshold gives: it is
        computed for the first."""
        key = pickle.dumps(what)  # equal only for equal settings; at worst the same is computed again
        if key not in self.computed:
            self.computed[key] = compute()
        return self.computed[key]

    @cached_property
    def computed(self) -> dict[bytes, Any]:
        """What `once` has computed."""
        return {}

    def with_block_size(self, block_size: int) -> Denoiser:
        """The dLM under its own attention pattern with another block size."""
        return self.dlm.at(block_size)

    @cached_property
    def masking(self) -> Masking:
        """The masking scheme of training."""
        return make_masking(self.config)


class Measurement(ABC):
    """A measurement of a run. Its settings are its constructor's arguments: JSON values, or objects built from them.
    Contract: the same weights and settings give the same result, except for timings."""

    @abstractmethod
    def __call__(self, subject: Subject) -> dict[str, Any]:
        """Measure a run and return the result as JSON values."""
