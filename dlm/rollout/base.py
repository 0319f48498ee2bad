"""What a model makes itself before it is trained on it: on-policy states instead of corrupted data."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent
from dlm.types import Batch, Noised


class Rollout(ABC):
    """Contract: no gradient flows through a rollout, and it leaves the model's mode as it was. It runs on the model's
    device and waits for it: on-policy states cannot be drawn ahead. A batch is made with `probability`, else it is left
    as it is."""

    probability: float = 1.0

    def bind(self, parent: Parent) -> None:  # noqa: B027  (most need nothing)
        """Take what is needed of the parent."""

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, batch: Batch, noised: Noised, generator: torch.Generator
    ) -> tuple[Batch, Noised]:
        """The batch and its corruption as the model itself has made them (both on the CPU)."""
