"""A forward of several blocks of each sequence.

It reads [pending ; active]: finished tokens that the cache does not hold yet, and the blocks that are being denoised,
of which there may be several. What a row of an active block sees is left to the pattern's predicate: earlier active
blocks where it sees noisy ones (`block_noisy`), only the finished blocks, as clean ones, and its own where it does not
(`block`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import SCRATCH, Canvas
from dlm.decoding.engine.loop import Batches
from dlm.decoding.engine.plan import flat, forward_over
from dlm.decoding.engine.rule import CommitRule
from dlm.model.denoiser import Denoiser

Embed = Callable[["BlocksCanvas", Int[Tensor, "N R"]], Float[Tensor, "N R D"]]


class BlocksCanvas(Canvas):
    """A canvas on which the blocks from `start` to `end` are active. `token` and `certainty` are the last prediction of
    every slot. Shapes depend on what the sequences hold."""

    STATE = (*Canvas.STATE, "end")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.end = self.start.clone()
        self.token, self.certainty = torch.zeros_like(self.x), torch.zeros_like(self.confidence)

    def active_slots(self) -> Int[Tensor, "N S"]:
        """The slots of the active blocks, block after block. Sequences with fewer of them have slots from `end` on, at
        most the sentinel."""
        ahead = torch.arange(int((self.end - self.start).max()), device=self.x.device)
        return (self.start[:, None] + ahead).clamp_max(self.num_slots)


class ActiveBlocks(Batches):
    """A loop over active blocks. It is for patterns with noisy blocks that see nothing of later ones: else none is ever
    finished."""

    canvas = BlocksCanvas
    rows_leave = True

    def takes(self, pattern: AttentionPattern) -> str | None:
        if pattern.cacheable and pattern.noisy_stream:
            return None
        why = "denoises no blocks" if pattern.cacheable else "lets blocks see later ones"
        return (
            f"it denoises blocks that see nothing of later ones, and {type(pattern).__name__} {why}: choose "
            "attention=block_noisy or attention=block, or decoding=threshold"
        )


def predict(
    denoiser: Denoiser,
    canvas: BlocksCanvas,
    rule: CommitRule,
    generator: torch.Generator | None,
    wanted: Bool[Tensor, "N S"],
    embed: Embed | None = None,
) -> None:
    """One forward: a token and its confidence for the `wanted` ones of the active slots, and the finished blocks into
    the cache. With the shift a token is scored by the row before it. The first active one's is finished and read only
    once, after which the prediction stays. `embed(canvas, slots)` is what the rows read in place of tokens."""
    active, width = canvas.active_slots(), int((canvas.end - canvas.written).max())
    slots = canvas.written[:, None] + torch.arange(width, device=active.device)
    slots = torch.where(slots < canvas.end[:, None], slots, SCRATCH)
    row = active - canvas.written[:, None] - int(denoiser.token_shift)
    asked = wanted & (row >= 0)
    embeds = None if embed is None else embed(canvas, slots.clamp_min(0))
    scored = flat(row, slots)[asked]
    forward = forward_over(denoiser.pattern, canvas, slots, int(canvas.end.max()), canvas.end, scored, embeds=embeds)
    predicted = rule.sample(forward.logits(denoiser, canvas)[None], generator)
    for state, new in zip((canvas.token, canvas.certainty), predicted, strict=True):
        values = state.gather(1, active)
        values[asked] = new[0].to(state.dtype)
        state.scatter_(1, active, values)
    canvas.written = canvas.start.clone()
