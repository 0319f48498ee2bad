"""Where the noise level t of a unit comes from. A *unit* is what shares one level: a block, a document, a token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class NoiseUnits:
    """The units of a batch in the order of their tokens: the `document` of each (numbered through the batch), and how
    many maskable tokens it has."""

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
