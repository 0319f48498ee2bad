"""Auxiliary losses: further terms, computed from the same forward as the diffusion loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.layout import Layout
from dlm.model.parent import Parent
from dlm.types import Batch, ModelInputs, Movable, Noised, Scored


@dataclass(frozen=True)
class Forward:
    """A forward without gradient that a term runs in addition to the student's: the model, its `inputs`, and the number
    of rows that it computes logits of. `inputs` None: only the head runs, on hidden states that exist already."""

    denoiser: Denoiser
    inputs: ModelInputs | None
    head_rows: int


OfLogits = Callable[[Float[Tensor, "M V"], slice], Float[Tensor, " M"]]


class Auxiliary:
    """Contract: a sum over rows divided by `num_tokens`, like the diffusion loss, so that a global batch may be split.

    `needs` prepares the term's inputs (on the CPU). A subclass then implements one of two: `of_logits`, a function of
    the scored tokens' logits that is called chunk by chunk, or `of_states`, a function of hidden states.
    """

    reads_states: bool = False  # whether `of_states` needs the hidden states of every layer
    balanced: bool = False  # whether `factor` depends on its arguments

    def __init__(self, weight: float):
        if weight < 0:
            raise ValueError(f"the weight {weight} of auxiliary loss {type(self).__name__} must be >= 0")
        self.weight = weight

    def check(self, pattern: AttentionPattern, masking: Masking) -> None:
        """Raise `ValueError` for a pattern or a masking scheme that this loss cannot be combined with."""

    def bind(self, parent: Parent) -> None:
        """Set the term up with the parent, before training starts."""

    def needs(
        self, layout: Layout, batch: Batch, noised: Noised, scored: Scored
    ) -> tuple[Int[Tensor, " M"] | None, Movable | None]:
        """The extra rows of hidden states that the term reads (flat in [B S]; None: no rows), and its other inputs,
        which move to the device with the batch."""
        return None, None

    def num_rows(self, needs: Movable | None) -> int:
        """The number of extra rows in what `needs` returned."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes that the term occupies on the device throughout training."""
        return 0

    def forwards(self, denoiser: Denoiser, needs: Movable | None) -> list[Forward]:
        """The forwards that the term runs in addition to the student's."""
        return []

    def of_logits(
        self, denoiser: Denoiser, hidden: Float[Tensor, "N D"], scored: Scored, needs: Movable | None
    ) -> OfLogits | None:
        """A function of a chunk's logits and its slice of the scored tokens, which returns one value per token.
        `hidden` are the last hidden states of all scored tokens."""
        return None

    def of_states(
        self,
        denoiser: Denoiser,
        states: list[Float[Tensor, "R D"]],
        extra: slice,
        num_tokens: int,
        needs: Movable | None,
    ) -> Float[Tensor, ""] | None:
        """The term's value. `states` are hidden states after the embedding and after every layer, or only the last ones
        (see `reads_states`): R rows, first the scored tokens', and in `extra` the term's extra rows."""
        return None

    def factor(self, value: Float[Tensor, ""], diffusion: Float[Tensor, ""]) -> float | Float[Tensor, ""]:
        """The factor of the term's `value` in the total loss; `diffusion` is the diffusion loss."""
        return self.weight
