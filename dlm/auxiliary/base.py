"""A further term of the loss, computed from the forward that the diffusion loss makes anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent
from dlm.types import Batch, ModelInputs, Movable, Noised, Scored


@dataclass(frozen=True)
class Forward:
    """A forward without gradient that a term makes beside the student's own: what a model reads, and of how many rows
    it computes logits. `inputs` None: logits alone, of states that are there."""

    denoiser: Denoiser
    inputs: ModelInputs | None
    head_rows: int


OfLogits = Callable[[Float[Tensor, "M V"], slice], Float[Tensor, " M"]]


class Auxiliary:
    """Contract: a sum over rows divided by `num_tokens`, as the diffusion loss is, so that a global batch may be split.

    A term says what it needs (`needs`, on the CPU), and is then a function of the scored tokens' logits (`of_logits`,
    called chunk by chunk) or of hidden states (`of_states`); it has one of the two.
    """

    reads_states: bool = False  # whether `of_states` wants every layer's
    balanced: bool = False  # whether `factor` depends on the values it is given

    def __init__(self, weight: float):
        if weight < 0:
            raise ValueError(f"the weight {weight} of auxiliary loss {type(self).__name__} must be >= 0")
        self.weight = weight

    def check(self, pattern: AttentionPattern, masking: Masking) -> None:
        """Raise `ValueError` where this loss makes no sense."""

    def bind(self, parent: Parent) -> None:
        """Take what is needed of the parent before it is trained."""

    def needs(
        self, denoiser: Denoiser, batch: Batch, noised: Noised, scored: Scored
    ) -> tuple[Int[Tensor, " M"] | None, Movable | None]:
        """More rows to read (flat in [B S]), and what else is needed on the device."""
        return None, None

    def num_rows(self, needs: Movable | None) -> int:
        """How many rows `needs` asked for."""
        return 0

    @property
    def nbytes(self) -> int:
        """What it holds on the device all the time, in bytes."""
        return 0

    def forwards(self, denoiser: Denoiser, needs: Movable | None) -> list[Forward]:
        """What it costs beside the student's forward and the rows that `needs` asked for."""
        return []

    def of_logits(
        self, denoiser: Denoiser, hidden: Float[Tensor, "N D"], scored: Scored, needs: Movable | None
    ) -> OfLogits | None:
        """A function of the logits of a chunk of the scored tokens."""
        return None

    def of_states(
        self,
        denoiser: Denoiser,
        states: list[Float[Tensor, "R D"]],
        own: slice,
        num_tokens: int,
        needs: Movable | None,
    ) -> Float[Tensor, ""] | None:
        """A function of hidden states: `states[-1]` are the last ones, `own` the rows that `needs` asked for."""
        return None

    def factor(self, value: Float[Tensor, ""], diffusion: Float[Tensor, ""]) -> float | Float[Tensor, ""]:
        """What the value is multiplied by."""
        return self.weight
