"""Prompt lookup: the draft is the continuation of an earlier occurrence of the last tokens, and AR verifies it.

It needs no training and no second model, and is exactly AR decoding (`dlm.decoding.engine.verify`). It is the baseline
that a faster decoder has to beat where answers repeat their prompts (Saxena, prompt lookup decoding, 2023; copying from
a reference: arXiv 2304.04487).
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.attention.block import Block
from dlm.decoding.base import Decoder
from dlm.decoding.engine.verify import Cycle, Speculative
from dlm.decoding.fixed import MostConfident


class FromText(Speculative):
    """Drafts up to `length` tokens if the last tokens, one to `ngram` of them, occur earlier in the prompt or the
    output."""

    def __init__(self, length: int, ngram: int):
        if length < 1 or ngram < 1:
            raise ValueError(f"decoding.length {length} and decoding.ngram {ngram} must be at least 1")
        self.length, self.ngram = length, ngram

    def draft(self, pattern):
        return Block(self.length + 1)  # there are no windows; only the block size is used

    def cycle(self, denoiser, rule, canvas, request):
        return LookingUp(denoiser, rule, canvas, request, length=self.length, ngram=self.ngram)


class LookingUp(Cycle):
    """Makes a draft from the text before every forward."""

    def __init__(self, *args, length: int, ngram: int):
        super().__init__(*args)
        self.length, self.ngram = length, ngram

    def forward(self) -> None:
        """Look up a draft and verify it."""
        self.look_up()
        tokens, _ = self.read(windows=0)
        self.verify(self.logits(tokens))

    def look_up(self) -> None:
        """Make the drafts, at most as long as leaves one token for AR to write."""
        canvas = self.canvas
        source = continuation(canvas.x, canvas.start, self.ngram)
        remaining = canvas.prompt_length + canvas.limit - canvas.start - 1
        lengths = torch.where((source < 0) | canvas.finished, 0, remaining.clamp_max(self.length))
        offset = torch.arange(int(lengths.max()), device=source.device)
        # A continuation that reaches the end of the text goes on with the draft itself: it repeats.
        slots = source[:, None] + offset % (canvas.start - source)[:, None]
        token = torch.where(offset < lengths[:, None], canvas.x.gather(1, slots.clamp_min(0)), self.verifier.mask_id)
        proposal = None
        if self.rule.temperature > 0:
            vocabulary = self.verifier.model.get_output_embeddings().weight.shape[0]
            proposal = torch.nn.functional.one_hot(token, vocabulary).to(torch.float32)
        self.propose(token, lengths, proposal)


class Lookup(Decoder):
    """AR decoding with drafts from the text. Every forward commits at least one token, so there are never more forwards
    than in AR decoding. `Generation.rows` includes the drafts.

    If it samples, the proposal puts all probability on the draft: a token is accepted with its probability under AR.
    """

    def __init__(self, length: int, ngram: int, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(FromText(length, ngram), MostConfident(1, temperature, top_p))


def continuation(x: Int[Tensor, "B S"], end: Int[Tensor, " B"], ngram: int) -> Int[Tensor, " B"]:
    """The slot after the longest earlier occurrence of the last tokens before `end`, at most `ngram` of them; of
    several as long, after the most recent. -1 if the last token does not occur earlier."""
    slots = torch.arange(x.shape[1], device=x.device)
    matches, length = slots < end[:, None] - 1, torch.zeros_like(x)
    for back in range(ngram):
        token = x.gather(1, (end[:, None] - 1 - back).clamp_min(0))
        earlier = x.roll(back, 1)  # at slot s, the token of slot s - back
        matches = matches & (slots >= back) & (earlier == token)
        length += matches
    best = (length * x.shape[1] + slots).masked_fill(length == 0, -1).amax(1)
    return torch.where(best < 0, -1, best % x.shape[1] + 1)
