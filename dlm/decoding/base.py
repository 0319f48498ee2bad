"""A decoder is a loop, which makes the forwards, and a rule, which decides what each of them commits."""

from __future__ import annotations

import copy
from typing import final

import torch

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import Generation
from dlm.decoding.engine.loop import Loop
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.session import Session
from dlm.model.denoiser import Denoiser


class Decoder:
    """A loop and a commit rule. An option of `decoding` is a subclass whose constructor builds both from its settings.

    `exports` names the settings of the rule with which the `generate` of an exported model decodes in the same way;
    empty if it cannot."""

    def __init__(self, loop: Loop, rule: CommitRule, exports: tuple[str, ...] = ()):
        self.loop, self.rule, self.exports = loop, rule, exports

    @final
    @torch.no_grad()
    def generate(self, denoiser: Denoiser, request: Request) -> list[Generation]:
        """Decode every prompt of the request: one generation per prompt, in order. Raises `ValueError` for an attention
        pattern or a prompt that this decoder cannot decode, and for `compile` if its loop or the model's layers cannot
        be compiled."""
        self.require(denoiser.pattern)
        if request.compile and not self.loop.compiles:
            raise ValueError(f"{type(self).__name__} has a loop of its own that cannot be compiled: set compile=False")
        reader, training = self.loop.mode(denoiser), denoiser.training
        request.check(reader, self.loop.sliding)
        if request.compile:
            reader.layers()  # refuses those that cannot be compiled
        denoiser.eval()
        try:
            return self.loop.generate(reader, self.rule, request)
        finally:
            denoiser.train(training)

    @final
    def session(self, denoiser: Denoiser, kept_tokens: int = 0) -> Session:
        """A session in which requests join and leave between forwards; each is answered as `generate` answers it alone.
        Requests are added with this decoder's `rule` or that of `at` or `sampling`. Loops that can keep up to
        `kept_tokens` tokens of those that have left, so that prompts that begin as they do are not read again. The
        denoiser is left in evaluation mode. Raises `ValueError` for a pattern that this decoder cannot decode."""
        self.require(denoiser.pattern)
        denoiser.eval()
        return self.loop.session(self.loop.mode(denoiser), kept_tokens=kept_tokens)

    @final
    def require(self, pattern: AttentionPattern) -> None:
        """Raises `ValueError` for an attention pattern that this decoder cannot decode."""
        if reason := self.takes(pattern):
            raise ValueError(f"{type(self).__name__} cannot decode under {type(pattern).__name__}: {reason}")

    @final
    def takes(self, pattern: AttentionPattern) -> str | None:
        """None, or the reason why this decoder cannot decode under the pattern."""
        return self.loop.takes(pattern)

    @property
    def threshold(self) -> float | None:
        """The threshold of the rule, None if it has none."""
        return getattr(self.rule, "threshold", None)

    @final
    def at(self, threshold: float) -> Decoder:
        """The same decoder with another threshold. Raises `ValueError` if the rule has none."""
        if not hasattr(self.rule, "threshold"):
            raise ValueError(f"{type(self).__name__} has no threshold: choose decoding=threshold")
        other = copy.copy(self)
        other.rule = copy.copy(self.rule)
        other.rule.threshold = threshold
        return other

    @final
    def sampling(self, temperature: float, top_p: float = 1.0) -> Decoder:
        """The same decoder, drawing tokens at another temperature; 0 is greedy. Raises `ValueError` for values outside
        their range."""
        other = copy.copy(self)
        other.rule = copy.copy(self.rule)
        CommitRule.__init__(other.rule, temperature, top_p)
        return other

    @final
    def exported(self) -> dict[str, float | int] | None:
        """The settings with which the `generate` of an exported model decodes like this decoder, None if it cannot."""
        return {name: getattr(self.rule, name) for name in self.exports} or None
