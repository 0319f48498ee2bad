"""What is minimised over the masked tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dlm.types import LossOutput, Scored


class Loss(ABC):
    """Contract: a weighted sum over the masked tokens divided by `num_tokens`, the fixed number of tokens in a batch.

    A fixed divisor, not the number of tokens that happen to be masked, makes the gradient of a global batch the mean of
    its micro-batches' gradients however it is split (accumulation, devices).
    """

    def __call__(self, logits: Float[Tensor, "N V"], scored: Scored, num_tokens: int) -> LossOutput:
        nll = F.cross_entropy(logits, scored.target, reduction="none")
        return LossOutput((self.weight(scored) * nll).sum() / num_tokens, nll.detach())

    @abstractmethod
    def weight(self, scored: Scored) -> Float[Tensor, " N"]:
        """The weight of every masked token."""
