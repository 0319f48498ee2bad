"""Confidence shaping: lower entropy where the prediction is correct, so that more tokens pass a threshold (LLaDA 2.0's
CAP, dParallel)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.auxiliary.base import Auxiliary


class Confidence(Auxiliary):
    """The entropy, in nats, of every scored token that is predicted correctly, and 0 for the others."""

    def of_logits(self, denoiser, hidden, scored, needs):
        def entropy(logits, chunk):
            log_p = finite(logits).log_softmax(-1)
            is_correct = logits.argmax(-1) == scored.target[chunk]
            return -(log_p.exp() * log_p).sum(-1) * is_correct

        return entropy


def finite(logits: Float[Tensor, "M V"]) -> Float[Tensor, "M V"]:
    """Replaces the mask token's -inf by a number so low that its probability is 0, without NaN in the gradient."""
    return logits.masked_fill(torch.isneginf(logits), torch.finfo(logits.dtype).min / 4)
