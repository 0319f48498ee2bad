"""A ceiling for every commit rule: how fast a model could decode if something told it which predictions are right.

Nemotron-Labs-Diffusion (arXiv 2607.05722) calls it the speed of light of a checkpoint. The prompt is decoded at one
token per forward first, which gives the reference, and then once more: each forward commits every masked position whose
prediction is the reference's token. No decoder one can use knows these tokens, so this is no decoder one can use; its
tokens per forward are what a better commit rule could still gain at the same output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.decoding.canvas import Canvas, Generation
from dlm.decoding.engine import in_batches
from dlm.decoding.fixed import Fixed
from dlm.decoding.step import Stop, advance, behind, predict, write
from dlm.model.denoiser import Denoiser


class Oracle(Fixed):
    """Greedy. Where no prediction agrees with the reference, its token is committed at the most confident position. Its
    recorded confidence is 0: so many tokens were given, not predicted. `nfe` and `rows` are those of the second pass.
    """

    def __init__(self, sliding: bool = False):
        super().__init__(tokens_per_step=1, sliding=sliding)

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
        """As `engine.generate`; `on_step` sees the second pass."""
        unseen = {key: value for key, value in loop.items() if key != "on_step"}
        first = super().generate(denoiser, prompts, max_new_tokens, eos_id, stop=stop, **unseen)

        def begin(canvas: Canvas, eos_ids: Tensor) -> Callable[[], None]:
            truth = reference(canvas, first, denoiser.mask_id)
            return partial(self.step, denoiser, canvas, truth, eos_ids, stop)

        return in_batches(begin, denoiser, prompts, max_new_tokens, eos_id, sliding=self.sliding, **loop)

    def step(
        self,
        denoiser: Denoiser,
        canvas: Canvas,
        truth: Int[Tensor, "N slots"],
        eos_ids: Int[Tensor, " E"],
        stop: Stop | None,
    ) -> None:
        """One forward; what it predicts as the reference has it is committed."""
        token, confidence = predict(denoiser, canvas, self, None)
        canvas.nfe += ~canvas.finished
        right = truth.gather(1, canvas.block_slots())
        open_, is_eos = canvas.open() & (right != denoiser.mask_id), torch.isin(right, eos_ids)
        agrees = open_ & (token == right)
        rank = self.rank(confidence, is_eos).masked_fill(~open_, -torch.inf)
        best = torch.zeros_like(open_).scatter(1, rank.argmax(1, keepdim=True), True)
        given = best & open_ & ~agrees.any(1, keepdim=True)
        keep = agrees | given
        tail = behind(keep & is_eos) & canvas.open() & ~keep
        right = torch.where(tail, eos_ids[0] if len(eos_ids) else denoiser.mask_id, right)
        write(canvas, keep | tail, right, confidence.masked_fill(given, 0.0))
        advance(canvas, eos_ids, stop)


def reference(canvas: Canvas, made: list[Generation], mask_id: int) -> Int[Tensor, "N slots"]:
    """The tokens that were made for each sequence, in its slots; the mask token elsewhere."""
    truth = torch.full_like(canvas.x, mask_id)
    for row, number, begin in zip(truth, canvas.index.tolist(), canvas.prompt_length.tolist(), strict=True):
        tokens = made[number].tokens
        row[begin : begin + len(tokens)] = torch.tensor(tokens)
    return truth
