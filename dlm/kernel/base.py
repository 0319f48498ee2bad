"""What stands in the place of a hidden token."""

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
        """xt. Random tokens have ids below that of the mask, which comes after the vocabulary."""
