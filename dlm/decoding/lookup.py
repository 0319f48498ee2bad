"""Prompt lookup: what followed the last tokens when they stood in the text before is the draft, and AR verifies it.

It needs no training and no second model, and is exactly AR decoding (`dlm.decoding.verify`): the baseline that a faster
way of decoding has to beat wherever answers repeat their prompts (Saxena, prompt lookup decoding, 2023; copying from a
reference: arXiv 2304.04487).
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.attention.block import Block
from dlm.decoding.ar import AR
from dlm.decoding.canvas import Canvas, Generation
from dlm.decoding.step import Stop, advance
from dlm.decoding.verify import Cycle, speculate
from dlm.model.denoiser import Denoiser


class Lookup(AR):
    """Drafts `length` tokens where the last one to `ngram` tokens are found in the prompt or the output. Every forward
    brings at least one token, so there are never more forwards than in AR decoding; its rows are the drafts as well.

    Sampling verifies a draft that is certain of itself: a token is accepted with its own probability.
    """

    def __init__(self, length: int, ngram: int, **kwargs):
        super().__init__(**kwargs)
        if length < 1 or ngram < 1:
            raise ValueError(f"decoding.length {length} and decoding.ngram {ngram} must be at least 1")
        self.length, self.ngram = length, ngram

    def generate(
        self,
        denoiser: Denoiser,
        prompts: list[list[int]],
        max_new_tokens: int,
        eos_id: int | list[int] | None,
        generator: torch.Generator | None = None,
        stop: Stop | None = None,
        **loop,
    ) -> list[Generation]:
        """As `engine.generate`; `stop` is asked after every forward."""

        def cycle(both: Denoiser, canvas: Canvas) -> Cycle:
            return LookingUp(self, both, canvas, 0, generator)

        room = Block(self.length + 1)  # there are no windows, only as much room
        return speculate(cycle, room, denoiser, prompts, max_new_tokens, eos_id, stop, **loop)


class LookingUp(Cycle):
    """Drafts before every forward, from the text alone."""

    def forward(self, eos_ids: Int[Tensor, " E"], stop: Stop | None) -> None:
        """Look up, and verify what was found."""
        self.look_up()
        tokens, _ = self.read(windows=0)
        self.canvas.nfe += ~self.canvas.finished
        self.verify(self.logits(tokens))
        advance(self.canvas, eos_ids, stop)

    def look_up(self) -> None:
        """Draft, of the tokens that are still to come, all but the last, which AR gives itself."""
        canvas = self.canvas
        source = continuation(canvas.x, canvas.start, self.decoder.ngram)
        left = canvas.prompt_length + canvas.max_new_tokens - canvas.start - 1
        lengths = torch.where((source < 0) | canvas.finished, 0, left.clamp_max(self.decoder.length))
        offset = torch.arange(int(lengths.max()), device=source.device)
        # What lies behind the text is the draft itself: a short piece is repeated.
        slots = source[:, None] + offset % (canvas.start - source)[:, None]
        token = torch.where(offset < lengths[:, None], canvas.x.gather(1, slots.clamp_min(0)), self.both.mask_id)
        certain = None
        if self.decoder.temperature > 0:
            vocabulary = self.both.model.get_output_embeddings().weight.shape[0]
            certain = torch.nn.functional.one_hot(token, vocabulary).to(torch.float32)
        self.propose(token, lengths, certain)


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
