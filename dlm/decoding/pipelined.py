"""D2F's pipelined parallel decoding (arXiv 2508.09192, Algorithm 2): a block begins before the one before it is done.

Several blocks are active at once and every forward denoises all of them. A block is added when enough of the last one
is decoded, at first semi-activated: it commits only what is confident. When enough of the block before it is decoded it
is fully activated: it commits at least one token in every forward. A block is finished when it and all before it are
filled; the forward that writes it into the cache denoises the later ones, so that finishing costs none.

What an active block sees of the earlier active ones is the pattern's: their present, half masked state under
`block_noisy` (what D2F trains), nothing under `block`, where a gap is left until they are finished and clean. With the
token shift `block` scores the first token of a block from the clean one before it, so it waits for that as well.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.blocks import ActiveBlocks, BlocksCanvas, predict
from dlm.decoding.engine.commit import kept, write
from dlm.decoding.engine.lengths import whole_blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import advance
from dlm.decoding.threshold import AboveThreshold
from dlm.model.denoiser import Denoiser


class Pipeline(ActiveBlocks):
    """`add_at` (τ_add): the next block is added once this fraction of the last one is decoded. `activate_at` (τ_act): a
    block is fully activated once this fraction of the one before it is decoded. A prompt's tokens count as decoded.

    Every step commits, as the first active block is fully activated. With `add_at` 1 it is `Blocks`."""

    def __init__(self, add_at: float, activate_at: float):
        for name, value in (("add_at", add_at), ("activate_at", activate_at)):
            if not 0 <= value <= 1:
                raise ValueError(f"decoding.{name} {value} must lie in [0, 1]: it is a fraction of a block")
        self.add_at, self.activate_at = add_at, activate_at

    def begin(self, denoiser, rule, canvas, request):
        return partial(self.step, denoiser, rule, canvas, request)

    def step(self, denoiser: Denoiser, rule: CommitRule, canvas: BlocksCanvas, request: Request) -> None:
        """Perhaps another block, one forward, and what all active blocks commit."""
        size = canvas.block_size
        add = (progress(canvas, canvas.end[:, None] - size)[:, 0] >= self.add_at) | (canvas.end == canvas.start)
        canvas.end += size * (add & (canvas.end < canvas.length))
        slots = canvas.active_slots()
        wanted = scorable(denoiser, canvas, slots)
        predict(denoiser, canvas, rule, request.generator, wanted)
        self.commit(denoiser, rule, canvas, slots, wanted)
        shorten(canvas)
        advance(canvas, request.stop)

    def commit(
        self,
        denoiser: Denoiser,
        rule: CommitRule,
        canvas: BlocksCanvas,
        slots: Int[Tensor, "N S"],
        wanted: Bool[Tensor, "N S"],
    ) -> None:
        """What the rule keeps of each active block; semi-activated ones need not commit anything."""
        size = canvas.block_size
        token, confidence = (state.gather(1, slots) for state in (canvas.token, canvas.certainty))
        first = torch.arange(slots.shape[1] // size, device=slots.device) == 0
        required = first | (progress(canvas, slots[:, ::size] - size) >= self.activate_at)
        of_blocks = (t.view(-1, size) for t in (canvas.is_eos(token), confidence, wanted))
        first_is_final = (first & denoiser.token_shift).expand(len(canvas), -1).reshape(-1, 1)
        keep, tail = (t.view_as(slots) for t in kept(rule, *of_blocks, required.view(-1, 1), first_is_final))
        write(canvas, keep | tail, torch.where(tail, canvas.tail_id, token), confidence, slots)


class Pipelined(Decoder):
    """Several blocks at once, by `threshold` (the paper's τ_conf)."""

    def __init__(
        self, threshold: float, add_at: float, activate_at: float, temperature: float = 0.0, top_p: float = 1.0
    ):
        super().__init__(Pipeline(add_at, activate_at), AboveThreshold(threshold, temperature, top_p))


def progress(canvas: BlocksCanvas, begin: Int[Tensor, "N A"]) -> Float[Tensor, "N A"]:
    """The decoded fraction of the blocks that begin at these slots."""
    slots = begin[..., None] + torch.arange(canvas.block_size, device=begin.device)
    slots = slots.clamp(0, canvas.num_slots)
    decoded = ~canvas.masked.gather(1, slots.flatten(1)).view_as(slots)
    return decoded.sum(-1).double() / canvas.block_size  # correctly rounded: 1 of 10 reaches 0.1


def scorable(denoiser: Denoiser, canvas: BlocksCanvas, slots: Int[Tensor, "N S"]) -> Bool[Tensor, "N S"]:
    """The masked ones of the active slots that have a score: with the shift and a clean stream, the first token of a
    block has none until the block before it is finished."""
    masked = canvas.masked.gather(1, slots) & (slots < canvas.end[:, None])
    if not (denoiser.token_shift and denoiser.pattern.clean_stream):
        return masked
    return masked & ((slots % canvas.block_size != 0) | (slots == canvas.start[:, None]))


def shorten(canvas: BlocksCanvas) -> None:
    """End the canvas with the block of the first EOS: no block is added behind it, and nothing that is kept sees those
    that are there."""
    slots = torch.arange(canvas.num_slots + 1, device=canvas.x.device)
    ended = canvas.is_eos(canvas.x) & (slots >= canvas.prompt_length[:, None])
    length = whole_blocks(torch.where(ended, slots + 1, canvas.num_slots).amin(1), canvas.block_size)
    canvas.length = torch.minimum(canvas.length, length)
    canvas.end = torch.minimum(canvas.end, canvas.length)
