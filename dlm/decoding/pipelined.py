"""D2F's pipelined parallel decoding (arXiv 2508.09192, Algorithm 2): a block begins before the previous one is done.

Several blocks are active at once, and every forward denoises all of them. A block is added when enough of the last one
is decoded. At first it is semi-activated: it commits only confident predictions. When enough of the previous block is
decoded, it is fully activated: it commits at least one token in every forward. A block is finished when it and all
blocks before it are filled. The forward that writes it into the cache also denoises the later ones, so that finishing a
block costs no forward.

The pattern decides what an active block sees of the earlier active ones: under `block_noisy` their present, partly
masked state (which D2F trains); under `block` nothing, until they are finished and clean. With the token shift, `block`
scores the first token of a block from the clean token before it, so that this token also waits for the previous block.

    B sequences        S slots of the active blocks        A active blocks
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.blocks import ActiveBlocks, BlocksCanvas, predict
from dlm.decoding.engine.commit import select_commits, write
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import advance
from dlm.decoding.threshold import AboveThreshold
from dlm.model.denoiser import Denoiser


class Pipeline(ActiveBlocks):
    """`add_at` (τ_add): the next block is added once this fraction of the last one is decoded. `activate_at` (τ_act): a
    block is fully activated once this fraction of the previous one is decoded. Prompt tokens count as decoded.

    Every step commits, since the first active block is always fully activated. With `add_at` 1 it equals `Blocks`."""

    def __init__(self, add_at: float, activate_at: float):
        for name, value in (("add_at", add_at), ("activate_at", activate_at)):
            if not 0 <= value <= 1:
                raise ValueError(f"decoding.{name} {value} must lie in [0, 1]: it is a fraction of a block")
        self.add_at, self.activate_at = add_at, activate_at

    def begin(self, denoiser, rule, canvas, request):
        return partial(self.step, denoiser, rule, canvas, request)

    def step(self, denoiser: Denoiser, rule: CommitRule, canvas: BlocksCanvas, request: Request) -> None:
        """Add a block if it is time, run one forward, and commit predictions of all active blocks."""
        size = canvas.block_size
        add = (progress(canvas, canvas.end[:, None] - size)[:, 0] >= self.add_at) | (canvas.end == canvas.start)
        canvas.end += size * (add & (canvas.end < canvas.length))
        slots = canvas.active_slots()
        can_score = scorable(denoiser, canvas, slots)
        predict(denoiser, canvas, rule, request.generator, can_score)
        self.commit(denoiser, rule, canvas, slots, can_score)
        shorten(canvas)
        advance(canvas)

    def commit(
        self,
        denoiser: Denoiser,
        rule: CommitRule,
        canvas: BlocksCanvas,
        slots: Int[Tensor, "B S"],
        can_score: Bool[Tensor, "B S"],
    ) -> None:
        """Write the tokens that the rule commits in each active block, none or more in a semi-activated one."""
        size = canvas.block_size
        token, confidence = (state.gather(1, slots) for state in (canvas.token, canvas.certainty))
        first = torch.arange(slots.shape[1] // size, device=slots.device) == 0
        required = first | (progress(canvas, slots[:, ::size] - size) >= self.activate_at)
        by_block = (t.view(-1, size) for t in (canvas.is_eos(token), confidence, can_score))
        first_is_final = (first & denoiser.token_shift).expand(len(canvas), -1).reshape(-1, 1)
        commits = select_commits(rule, *by_block, required.view(-1, 1), first_is_final)
        keep, tail = (t.view_as(slots) for t in commits)
        write(canvas, keep | tail, torch.where(tail, canvas.tail_id, token), confidence, slots)


class Pipelined(Decoder):
    """Decodes several blocks at once, by `threshold` (the paper's τ_conf)."""

    def __init__(
        self, threshold: float, add_at: float, activate_at: float, temperature: float = 0.0, top_p: float = 1.0
    ):
        super().__init__(Pipeline(add_at, activate_at), AboveThreshold(threshold, temperature, top_p))


def progress(canvas: BlocksCanvas, begin: Int[Tensor, "B A"]) -> Float[Tensor, "B A"]:
    """The decoded fraction of each block, in [0, 1]. `begin` are the first slots of the blocks."""
    slots = begin[..., None] + torch.arange(canvas.block_size, device=begin.device)
    slots = slots.clamp(0, canvas.num_slots)
    decoded = ~canvas.masked.gather(1, slots.flatten(1)).view_as(slots)
    return decoded.sum(-1).double() / canvas.block_size  # in float64, as the thresholds: 1 of 10 reaches 0.1


def scorable(denoiser: Denoiser, canvas: BlocksCanvas, slots: Int[Tensor, "B S"]) -> Bool[Tensor, "B S"]:
    """Which of the active slots are masked and can be scored. With the shift and a clean stream, the first token of a
    block cannot be scored until the previous block is finished."""
    masked = canvas.masked.gather(1, slots) & (slots < canvas.end[:, None])
    if not (denoiser.token_shift and denoiser.pattern.clean_stream):
        return masked
    return masked & (((slots - canvas.start[:, None]) % canvas.block_size != 0) | (slots == canvas.start[:, None]))


def shorten(canvas: BlocksCanvas) -> None:
    """End each sequence with the block of its first EOS. No block is added after it, and those that were already added
    are dropped: no token of the answer has seen them."""
    slots = torch.arange(canvas.num_slots + 1, device=canvas.x.device)
    ended = canvas.is_eos(canvas.x) & (slots >= canvas.prompt_length[:, None])
    length = canvas.block_end(torch.where(ended, slots + 1, canvas.num_slots).amin(1))
    canvas.length = torch.minimum(canvas.length, length)
    canvas.end = torch.minimum(canvas.end, canvas.length)
