"""A forward of several blocks of each sequence.

It reads [pending ; active]: finished tokens that the cache does not hold yet, and the blocks that are being denoised,
of which there may be several. The pattern's predicate decides what a row of an active block sees. Under `block_noisy`
it sees earlier active blocks; under `block` it sees only its own block and the finished ones, as clean ones.

    B sequences        S slots of the active blocks        R rows that a forward reads of each sequence
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import SCRATCH, Canvas
from dlm.decoding.engine.loop import Batches
from dlm.decoding.engine.plan import flat_index, plan_forward
from dlm.decoding.engine.rule import CommitRule
from dlm.model.denoiser import Denoiser

Embed = Callable[["BlocksCanvas", Int[Tensor, "B R"]], Float[Tensor, "B R D"]]


class BlocksCanvas(Canvas):
    """A canvas on which the blocks from slot `start` [B] to slot `end` [B] are active. `token` and `certainty` are the
    last prediction of every slot and its confidence, [B num_slots+1]. Shapes follow the contents of the sequences."""

    STATE = (*Canvas.STATE, "end")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.end = self.start.clone()
        self.token, self.certainty = torch.zeros_like(self.x), torch.zeros_like(self.confidence)

    def active_slots(self) -> Int[Tensor, "B S"]:
        """The slots of the active blocks, block after block. Sequences with fewer active blocks are padded with the
        slots from `end` on, up to the sentinel."""
        ahead = torch.arange(int((self.end - self.start).max()), device=self.x.device)
        return (self.start[:, None] + ahead).clamp_max(self.num_slots)

    def last_predictions(self, row, start):
        """As for one block, of all that were active; a forward predicts each of them again."""
        slots = torch.arange(start, int(self.end[row]), device=self.x.device)
        return slots, self.token[row, slots], self.certainty[row, slots], torch.ones_like(slots, dtype=torch.bool)


class ActiveBlocks(Batches):
    """A loop over active blocks, for patterns whose noisy blocks see nothing of later ones. Otherwise no block could
    ever be finished."""

    canvas = BlocksCanvas
    drops_finished = True

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
    to_predict: Bool[Tensor, "B S"],
    embed: Embed | None = None,
) -> None:
    """Run one forward. It predicts a token and its confidence at the active slots `to_predict`, and writes the finished
    blocks into the cache. With the shift, a token is scored by the row before it; the row before the first active slot
    is finished and read only once, so that slot keeps its first prediction. `embed(canvas, slots)` gives the embeddings
    that the rows read in place of tokens."""
    active, width = canvas.active_slots(), int((canvas.end - canvas.written).max())
    slots = canvas.written[:, None] + torch.arange(width, device=active.device)
    slots = torch.where(slots < canvas.end[:, None], slots, SCRATCH)
    row = active - canvas.written[:, None] - int(denoiser.token_shift)
    is_scored = to_predict & (row >= 0)
    embeds = None if embed is None else embed(canvas, slots.clamp_min(0))
    scored = flat_index(row, slots)[is_scored]
    plan = plan_forward(denoiser.pattern, canvas, slots, int(canvas.end.max()), canvas.end, scored, embeds=embeds)
    predictions = rule.sample(plan.logits(denoiser, canvas)[None], generator)
    for state, new in zip((canvas.token, canvas.certainty), predictions, strict=True):
        values = state.gather(1, active)
        values[is_scored] = new[0].to(state.dtype)
        state.scatter_(1, active, values)
    canvas.written = canvas.start.clone()
