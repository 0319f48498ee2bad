"""What can be measured of a finished run, and how it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from dlm.config.build import ar_denoiser, converted_denoiser, make, make_masking
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent, load_parent
from dlm.runs.run import Run


class Subject:
    """A finished run's dLM and its AR parent. What is asked for is loaded, once."""

    def __init__(self, run: Run):
        if not run.model_folder.exists():
            raise ValueError(f"run {run.id} is {run.status} and has no model: finish it with the command that began it")
        self.run, self.config = run, run.config

    @cached_property
    def converted(self) -> Parent:
        """The converted weights with their tokenizer."""
        return load_parent(str(self.run.model_folder), dtype=self.config.model.get("dtype", "float32"), check=False)

    @cached_property
    def parent(self) -> Parent:
        return make(self.config.model, check=False)

    @cached_property
    def ar(self) -> Denoiser:
        """The parent, autoregressive."""
        return ar_denoiser(self.parent)

    @cached_property
    def dlm(self) -> Denoiser:
        return converted_denoiser(self.config, self.converted)

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
