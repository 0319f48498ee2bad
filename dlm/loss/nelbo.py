"""The negative evidence lower bound: masked tokens weighted by 1/t (Efficient-DLM, Eq. 1; MDLM, BD3-LM)."""

from __future__ import annotations

from dlm.loss.base import Loss


class Nelbo(Loss):
    """With unbiased masking the expected loss is an upper bound on the negative log-likelihood, in nats per token."""

    def weight(self, batch, noised):
        return noised.weight
