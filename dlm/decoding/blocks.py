"""A forward of several blocks of each sequence, for decoders with loops of their own.

A forward of a sequence reads [pending ; active], as the engine's does (`dlm.decoding.engine`): finished tokens that the
cache does not hold yet, and the blocks that are being denoised, of which there may be several. What a row of an active
block sees is left to the pattern's predicate: earlier active blocks where it sees noisy ones (`block_noisy`), only the
finished blocks, as clean ones, and its own where it does not (`block`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.decoding.base import Decoder
from dlm.decoding.canvas import SCRATCH, Canvas
from dlm.model.denoiser import Denoiser
from dlm.types import Rows

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


def check_blocks(pattern: AttentionPattern, decoding: str) -> None:
    """Refuse a pattern that has no noisy blocks, or whose blocks see later ones, so that none is ever finished."""
    if not pattern.cacheable or not pattern.noisy_stream:
        why = "denoises no blocks" if pattern.cacheable else "lets blocks see later ones"
        raise ValueError(
            f"decoding={decoding} denoises blocks that see nothing of later ones, and {type(pattern).__name__} {why}: "
            "choose attention=block_noisy or attention=block, or decoding=threshold"
        )


def predict(
    denoiser: Denoiser,
    canvas: BlocksCanvas,
    decoder: Decoder,
    generator: torch.Generator | None,
    wanted: Bool[Tensor, "N S"],
    embed: Embed | None = None,
) -> None:
    """One forward: a token and its confidence for the `wanted` ones of the active slots, and the finished blocks into
    the cache. With the shift a token is scored by the row before it. The first active one's is finished and read only
    once, after which the prediction stays. `embed(canvas, slots)` is what the rows read in place of tokens."""
    cache, shift = canvas.cache, int(denoiser.token_shift)
    active, width = canvas.active_slots(), int((canvas.end - canvas.written).max())
    slots = canvas.written[:, None] + torch.arange(width, device=active.device)
    slots = torch.where(slots < canvas.end[:, None], slots, SCRATCH)
    cache.slots, cache.read = slots, int(canvas.end.max())
    columns = torch.arange(SCRATCH, cache.read, device=slots.device).expand(len(canvas), -1)
    masks = denoiser.masks(described(denoiser.pattern, canvas, slots), described(denoiser.pattern, canvas, columns))
    row = active - canvas.written[:, None] - shift
    asked = wanted & (row >= 0)
    scored = row + torch.arange(len(canvas), device=slots.device)[:, None] * width
    filled = slots.clamp_min(0)  # scratch rows read anything
    ids, embeds = (canvas.x.gather(1, filled), None) if embed is None else (None, embed(canvas, filled))
    logits = denoiser.score(
        scored[asked], ids, filled, masks, inputs_embeds=embeds, past_key_values=cache, use_cache=True
    )
    found = decoder.sample(logits[None], generator)
    for state, new in zip((canvas.token, canvas.certainty), found, strict=True):
        values = state.gather(1, active)
        values[asked] = new[0].to(state.dtype)
        state.scatter_(1, active, values)
    canvas.written = canvas.start.clone()
    canvas.rows += (slots != SCRATCH).sum(1)
    canvas.nfe += 1


def described(pattern: AttentionPattern, canvas: BlocksCanvas, slots: Int[Tensor, "N S"]) -> Rows:
    """The slots as rows or columns of the attention matrix: finished blocks are clean where the pattern knows clean
    ones; scratch and what lies behind the active blocks is padding."""
    used = (slots != SCRATCH) & (slots < canvas.end[:, None])
    clean = used & (slots < canvas.start[:, None]) & pattern.clean_stream
    return Rows(clean, torch.where(used, 0, -1), slots)
