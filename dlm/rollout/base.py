"""Rollouts: the model is trained on states that it generated itself (on-policy) instead of corrupted data."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent
from dlm.types import Batch, Noised


class Rollout(ABC):
    """Contract: no gradient flows through a rollout, and the model's mode (training or evaluation) is restored. A
    rollout runs on the model's device and waits for it, because on-policy states cannot be drawn ahead. With
    `probability` it replaces a batch; otherwise the batch is unchanged."""

    probability: float = 1.0

    def bind(self, parent: Parent) -> None:  # noqa: B027  (optional)
        """Set the rollout up with the parent, before training starts."""

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, batch: Batch, noised: Noised, generator: torch.Generator
    ) -> tuple[Batch, Noised]:
        """The batch and its corruption as the model generated them (both on the CPU)."""
