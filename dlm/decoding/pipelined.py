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

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.blocks import BlocksCanvas, check_blocks, predict
from dlm.decoding.canvas import Generation, whole_blocks
from dlm.decoding.commit import kept, write
from dlm.decoding.engine import in_batches
from dlm.decoding.step import Stop, advance
from dlm.decoding.threshold import Threshold
from dlm.model.denoiser import Denoiser


class Pipelined(Threshold):
    """Commits by `threshold` (the paper's τ_conf). `add_at` (τ_add) and `activate_at` (τ_act) are fractions of a block
    that are decoded, a prompt's tokens being so from the start: the last block's at which another is added, the
    previous block's at which one is fully activated.

    Every step commits, as the first active block is fully activated. With `add_at` 1 it is `Threshold`."""

    def __init__(self, threshold: float, add_at: float, activate_at: float, **kwargs):
        super().__init__(threshold, **kwargs)
        for name, value in (("add_at", add_at), ("activate_at", activate_at)):
            if not 0 <= value <= 1:
                raise ValueError(f"decoding.{name} {value} must lie in [0, 1]: it is a fraction of a block")
        if self.sliding:
            raise ValueError("decoding.sliding=true has no grid of blocks to be active: set it to false")
        self.add_at, self.activate_at = add_at, activate_at

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
        """As `engine.generate`. Raises `ValueError` also for a pattern that has no cacheable noisy blocks."""
        check_blocks(denoiser.pattern, "pipelined")

        def begin(canvas: BlocksCanvas, eos_ids: Tensor) -> Callable[[], None]:
            return partial(self.step, denoiser, generator, stop, canvas, eos_ids)

        loop |= {"kind": BlocksCanvas, "rows_leave": True}
        return in_batches(begin, denoiser, prompts, max_new_tokens, eos_id, **loop)

    def step(self, denoiser: Denoiser, generator, stop: Stop | None, canvas: BlocksCanvas, eos_ids) -> None:
        """Perhaps another block, one forward, and what all active blocks commit."""
        size = canvas.block_size
        add = (progress(canvas, canvas.end[:, None] - size)[:, 0] >= self.add_at) | (canvas.end == canvas.start)
        canvas.end += size * (add & (canvas.end < canvas.length))
        slots = canvas.active_slots()
        wanted = scorable(denoiser, canvas, slots)
        predict(denoiser, canvas, self, generator, wanted)
        self.commit(canvas, slots, wanted, denoiser, eos_ids)
        shorten(canvas, eos_ids)
        advance(canvas, eos_ids, stop)
        canvas.start = canvas.start // size * size  # it went to the first mask, behind all blocks that are done

    def commit(
        self,
        canvas: BlocksCanvas,
        slots: Int[Tensor, "N S"],
        wanted: Bool[Tensor, "N S"],
        denoiser: Denoiser,
        eos_ids: Int[Tensor, " E"],
    ) -> None:
        """The engine's commit rule for each active block; semi-activated ones need not commit anything."""
        size = canvas.block_size
        token, confidence = (state.gather(1, slots) for state in (canvas.token, canvas.certainty))
        first = torch.arange(slots.shape[1] // size, device=slots.device) == 0
        required = first | (progress(canvas, slots[:, ::size] - size) >= self.activate_at)
        keep, tail = (
            found.view_as(slots)
            for found in kept(
                self,
                torch.isin(token, eos_ids).view(-1, size),
                confidence.view(-1, size),
                wanted.view(-1, size),
                required.view(-1, 1),
                (first & denoiser.token_shift).expand(len(canvas), -1).reshape(-1, 1),
            )
        )
        token = torch.where(tail, eos_ids[0] if len(eos_ids) else denoiser.mask_id, token)
        write(canvas, keep | tail, token, confidence, slots)


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


def shorten(canvas: BlocksCanvas, eos_ids: Int[Tensor, " E"]) -> None:
    """End the canvas with the block of the first EOS: no block is added behind it, and nothing that is kept sees those
    that are there."""
    slots = torch.arange(canvas.num_slots + 1, device=canvas.x.device)
    ended = torch.isin(canvas.x, eos_ids) & (slots >= canvas.prompt_length[:, None])
    length = whole_blocks(torch.where(ended, slots + 1, canvas.num_slots).amin(1), canvas.block_size)
    canvas.length = torch.minimum(canvas.length, length)
    canvas.end = torch.minimum(canvas.end, canvas.length)
