"""The noise level t of each unit. A *unit* is a set of tokens that share one level: a block, a document or a token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class NoiseUnits:
    """The units of a batch in the order of their tokens: the `document` of each (numbered through the batch), and its
    `size`, the number of its maskable tokens."""

    document: Int[Tensor, " U"]
    size: Int[Tensor, " U"]


class NoiseLevel(ABC):
    """Contract: levels in (t_min, t_max], unless the scheme has a fixed level of its own; the same generator state
    gives the same levels."""

    @abstractmethod
    def __call__(
        self, units: NoiseUnits, t_min: float, t_max: float, generator: torch.Generator
    ) -> Float[Tensor, " U"]:
        """The level of every unit."""
