"""A ceiling for every commit rule: the speed of decoding if an oracle told which predictions are right.

Nemotron-Labs-Diffusion (arXiv 2607.05722) calls it the speed of light of a checkpoint. The prompt is first decoded at
one token per forward, which gives the reference, and then a second time: each forward commits every masked position
whose prediction agrees with the reference. It is a measurement, not a usable decoder, since the reference is not known
in advance. Its tokens per forward bound what a better commit rule could gain at the same output.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.commit import from_first, write
from dlm.decoding.engine.loop import Batches, Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import advance, predict
from dlm.decoding.fixed import MostConfident
from dlm.model.denoiser import Denoiser


class SecondPass(Batches):
    """Decodes every prompt by the rule, and then again with the first result as the reference. `on_step` is called in
    the second pass only."""

    def __init__(self, sliding: bool):
        self.sliding = sliding

    def begin(self, denoiser, rule, canvas, request):
        index = canvas.index.tolist()
        first_pass = replace(request, prompts=[request.prompts[n] for n in index], on_step=None)
        reference = in_slots(canvas, Blocks(self.sliding).generate(denoiser, rule, first_pass))
        return partial(self.step, denoiser, rule, canvas, request, reference)

    def step(
        self, denoiser: Denoiser, rule: CommitRule, canvas: Canvas, request: Request, reference: Int[Tensor, "B slots"]
    ) -> None:
        """One forward. Commits the predictions that agree with the reference."""
        token, confidence = predict(denoiser, canvas, rule, None)
        target = reference.gather(1, canvas.block_slots())
        open_, is_eos = canvas.open() & (target != canvas.mask_id), canvas.is_eos(target)
        agrees = open_ & (token == target)
        rank = rule.rank(confidence).masked_fill(~open_, -torch.inf)
        best = torch.zeros_like(open_).scatter(1, rank.argmax(1, keepdim=True), True)
        revealed = best & open_ & ~agrees.any(1, keepdim=True)
        keep = agrees | revealed
        tail = from_first(keep & is_eos) & canvas.open() & ~keep
        target = torch.where(tail, canvas.tail_id, target)
        write(canvas, keep | tail, target, confidence.masked_fill(revealed, 0.0))
        advance(canvas)


class Oracle(Decoder):
    """Greedy. If no prediction agrees with the reference, the reference token at the most confident position is
    committed. Its recorded confidence is 0, so that one can count the tokens that were revealed, not predicted. `nfe`
    and `rows` are those of the second pass."""

    def __init__(self, sliding: bool = False):
        super().__init__(SecondPass(sliding), MostConfident(1))


def in_slots(canvas: Canvas, generations: list[Generation]) -> Int[Tensor, "B slots"]:
    """The generated tokens of each sequence in its slots; the mask token elsewhere."""
    tokens = torch.full_like(canvas.x, canvas.mask_id)
    for row, generation, begin in zip(tokens, generations, canvas.prompt_length.tolist(), strict=True):
        row[begin : begin + len(generation.tokens)] = torch.tensor(generation.tokens)
    return tokens
