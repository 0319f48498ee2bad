"""Confidence shaping: low entropy where the prediction is right, so that more tokens pass a threshold (LLaDA 2.0's CAP,
dParallel)."""

from __future__ import annotations

import torch

from dlm.auxiliary.base import Auxiliary


class Confidence(Auxiliary):
    """The entropy in nats of the scored tokens that are predicted correctly; the others count nothing."""

    def of_logits(self, denoiser, hidden, scored, needs):
        def entropy(logits, chunk):
            log_p = finite(logits).log_softmax(-1)
            right = logits.argmax(-1) == scored.target[chunk]
            return -(log_p.exp() * log_p).sum(-1) * right

        return entropy


def finite(logits):
    """-inf, the mask token's, as a number so low that its probability is 0 and its gradient no NaN."""
    return logits.masked_fill(torch.isneginf(logits), torch.finfo(logits.dtype).min / 4)
