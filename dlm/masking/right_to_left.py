"""Strict right-to-left masking (Efficient-DLM, half-life → 0): always the k rightmost tokens of the unit."""

from __future__ import annotations

from dlm.masking.base import Masking


class RightToLeft(Masking):
    """The hidden tokens are a suffix of the unit's maskable tokens. Biased: the last token is always hidden."""

    unbiased = False

    def priority(self, t, offset, length, generator):
        return offset.float()
