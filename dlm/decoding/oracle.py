"""A ceiling for every commit rule: how fast a model could decode if something told it which predictions are right.

Nemotron-Labs-Diffusion (arXiv 2607.05722) calls it the speed of light of a checkpoint. The prompt is decoded at one
token per forward first, which gives the reference, and then once more: each forward commits every masked position whose
prediction is the reference's token. No decoder one can use knows these tokens, so this is no decoder one can use; its
tokens per forward are what a better commit rule could still gain at the same output.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.commit import behind, write
from dlm.decoding.engine.loop import Batches, Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import advance, predict
from dlm.decoding.fixed import MostConfident
from dlm.model.denoiser import Denoiser


class SecondPass(Batches):
    """Decodes every prompt by the rule, and then again with what that gave as the reference. `on_step` sees the second
    pass."""

    def __init__(self, sliding: bool):
        self.sliding = sliding

    def begin(self, denoiser, rule, canvas, request):
        numbers = canvas.index.tolist()
        first = replace(request, prompts=[request.prompts[n] for n in numbers], on_step=None)
        truth = reference(canvas, Blocks(self.sliding).generate(denoiser, rule, first))
        return partial(self.step, denoiser, rule, canvas, request, truth)

    def step(
        self, denoiser: Denoiser, rule: CommitRule, canvas: Canvas, request: Request, truth: Int[Tensor, "N slots"]
    ) -> None:
        """One forward; what it predicts as the reference has it is committed."""
        token, confidence = predict(denoiser, canvas, rule, None)
        right = truth.gather(1, canvas.block_slots())
        open_, is_eos = canvas.open() & (right != canvas.mask_id), canvas.is_eos(right)
        agrees = open_ & (token == right)
        rank = rule.rank(confidence, is_eos).masked_fill(~open_, -torch.inf)
        best = torch.zeros_like(open_).scatter(1, rank.argmax(1, keepdim=True), True)
        given = best & open_ & ~agrees.any(1, keepdim=True)
        keep = agrees | given
        tail = behind(keep & is_eos) & canvas.open() & ~keep
        right = torch.where(tail, canvas.tail_id, right)
        write(canvas, keep | tail, right, confidence.masked_fill(given, 0.0))
        advance(canvas, request.stop)


class Oracle(Decoder):
    """Greedy. Where no prediction agrees with the reference, its token is committed at the most confident position. Its
    recorded confidence is 0: so many tokens were given, not predicted. `nfe` and `rows` are those of the second pass.
    """

    def __init__(self, sliding: bool = False):
        super().__init__(SecondPass(sliding), MostConfident(1))


def reference(canvas: Canvas, made: list[Generation]) -> Int[Tensor, "N slots"]:
    """The tokens that were made for each sequence, in its slots; the mask token elsewhere."""
    truth = torch.full_like(canvas.x, canvas.mask_id)
    for row, generation, begin in zip(truth, made, canvas.prompt_length.tolist(), strict=True):
        row[begin : begin + len(generation.tokens)] = torch.tensor(generation.tokens)
    return truth
