"""Prompt lookup: what followed the last tokens when they stood in the text before is the draft, and AR verifies it.

It needs no training and no second model, and is exactly AR decoding (`dlm.decoding.engine.verify`): the baseline that a
faster way of decoding has to beat wherever answers repeat their prompts (Saxena, prompt lookup decoding, 2023; copying
from a reference: arXiv 2304.04487).
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
    """Drafts `length` tokens where the last one to `ngram` tokens are found in the prompt or the output."""

    def __init__(self, length: int, ngram: int):
        if length < 1 or ngram < 1:
            raise ValueError(f"decoding.length {length} and decoding.ngram {ngram} must be at least 1")
        self.length, self.ngram = length, ngram

    def draft(self, pattern):
        return Block(self.length + 1)  # there are no windows, only as much room

    def cycle(self, denoiser, rule, canvas, request):
        return LookingUp(denoiser, rule, canvas, request, length=self.length, ngram=self.ngram)


class LookingUp(Cycle):
    """Drafts before every forward, from the text alone."""

    def __init__(self, *args, length: int, ngram: int):
        super().__init__(*args)
        self.length, self.ngram = length, ngram

    def forward(self) -> None:
        """Look up, and verify what was found."""
        self.look_up()
        tokens, _ = self.read(windows=0)
        self.verify(self.logits(tokens))

    def look_up(self) -> None:
        """Draft, of the tokens that are still to come, all but the last, which AR gives itself."""
        canvas = self.canvas
        source = continuation(canvas.x, canvas.start, self.ngram)
        left = canvas.prompt_length + canvas.max_new_tokens - canvas.start - 1
        lengths = torch.where((source < 0) | canvas.finished, 0, left.clamp_max(self.length))
        offset = torch.arange(int(lengths.max()), device=source.device)
        # What lies behind the text is the draft itself: a short piece is repeated.
        slots = source[:, None] + offset % (canvas.start - source)[:, None]
        token = torch.where(offset < lengths[:, None], canvas.x.gather(1, slots.clamp_min(0)), self.both.mask_id)
        certain = None
        if self.rule.temperature > 0:
            vocabulary = self.both.model.get_output_embeddings().weight.shape[0]
            certain = torch.nn.functional.one_hot(token, vocabulary).to(torch.float32)
        self.propose(token, lengths, certain)


class Lookup(Decoder):
    """AR decoding, drafted from the text. Every forward brings at least one token, so there are never more forwards
    than in AR decoding; its rows are the drafts as well.

    Sampling verifies a draft that is certain of itself: a token is accepted with its own probability.
    """

    def __init__(self, length: int, ngram: int, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(FromText(length, ngram), MostConfident(1, temperature, top_p))


def continuation(x: Int[Tensor, "N S"], end: Int[Tensor, " N"], ngram: int) -> Int[Tensor, " N"]:
    """The slot after the longest earlier occurrence of the last tokens before `end`, at most `ngram` of them, and of
    those the most recent; -1 where the last token has none."""
    slots = torch.arange(x.shape[1], device=x.device)
    same, length = slots < end[:, None] - 1, torch.zeros_like(x)
    for back in range(ngram):
        token = x.gather(1, (end[:, None] - 1 - back).clamp_min(0))
        earlier = x.roll(back, 1)  # at slot s, the token of slot s - back
        same = same & (slots >= back) & (earlier == token)
        length += same
    best = (length * x.shape[1] + slots).masked_fill(length == 0, -1).amax(1)
    return torch.where(best < 0, -1, best % x.shape[1] + 1)
