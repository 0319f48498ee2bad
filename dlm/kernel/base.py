"""The kernel decides which token replaces a hidden one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Kernel(ABC):
    """Contract: tokens that are not `masked` stay as they are."""

    @abstractmethod
    def __call__(
        self, x0: Int[Tensor, "B KL"], masked: Bool[Tensor, "B KL"], mask_id: int, generator: torch.Generator
    ) -> Int[Tensor, "B KL"]:
        """The corrupted tokens xt. Random tokens have ids below `mask_id`, which comes after the vocabulary."""
