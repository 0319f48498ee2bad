"""A forward over the cache: its inputs, and the only place where it is run and counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import SCRATCH, Canvas
from dlm.model.denoiser import Denoiser
from dlm.types import Rows


@dataclass(frozen=True)
class ForwardPlan:
    """A forward of B sequences with R input rows each.

    `slots` are the slots to which the rows write their keys and values (SCRATCH: padding, which no row sees). `rows`
    and `columns` describe the rows and the slots that they may see, scratch first, to the attention predicate. `scored`
    are the rows whose hidden states are returned, flat in [B R]. A row reads the token in its slot unless there are
    `embeds`, at the position of its slot unless there are `positions`."""

    slots: Int[Tensor, "B R"]
    rows: Rows
    columns: Rows
    scored: Int[Tensor, " M"]
    positions: Int[Tensor, "B R"] | None = None
    embeds: Float[Tensor, "B R D"] | None = None

    def logits(self, denoiser: Denoiser, canvas: Canvas) -> Float[Tensor, "M V"]:
        """Run the forward: the logits of the scored rows."""
        return denoiser.logits(self.hidden(denoiser, canvas))

    def hidden(self, denoiser: Denoiser, canvas: Canvas, tiled: bool = False) -> Float[Tensor, "M D"]:
        """Run the forward: the hidden states of the scored rows, of which the head makes the logits. It writes keys and
        values into the cache of the canvas, and counts in its `nfe` and `rows`. With `tiled`, attention reads only the
        used tiles of the cache."""
        cache = canvas.cache
        cache.slots, cache.read = self.slots, self.columns.position.shape[1] - 1
        canvas.rows += (self.slots != SCRATCH).sum(1)
        canvas.nfe += ~canvas.finished
        readable = self.slots.clamp_min(0)
        positions = readable if self.positions is None else self.positions.clamp_min(0)
        ids = canvas.x.gather(1, readable) if self.embeds is None else None
        reads = {"input_ids": ids, "inputs_embeds": self.embeds, "position_ids": positions}
        if canvas.pictures is not None:
            reads = canvas.pictures.read(denoiser.model, positions, ids, self.embeds)
        masks = denoiser.masks(self.rows, self.columns, tiled=tiled)
        return denoiser.hidden(self.scored, attention_mask=masks, past_key_values=cache, use_cache=True, **reads)


def plan_forward(
    pattern: AttentionPattern,
    canvas: Canvas,
    slots: Int[Tensor, "B R"],
    read: int,
    end: Int[Tensor, " B"],
    scored: Int[Tensor, " M"],
    embeds: Float[Tensor, "B R D"] | None = None,
) -> ForwardPlan:
    """The plan of a forward that reads `slots` and may see the first `read` slots, except those from each sequence's
    `end` on, which are empty. `scored` are rows, flat in [B R]. The predicate is given positions at which the
    current block begins at a multiple of its size."""
    shift = -canvas.start[:, None] % canvas.block_size
    columns = torch.arange(SCRATCH, read, device=slots.device).expand(len(slots), -1)
    rows, columns = (as_rows(pattern, s, canvas, end, shift) for s in (slots, columns))
    return ForwardPlan(slots, rows, columns, scored, embeds=embeds)


def as_rows(
    pattern: AttentionPattern,
    slots: Int[Tensor, "B S"],
    canvas: Canvas,
    end: Int[Tensor, " B"],
    shift: Int[Tensor, "B 1"],
) -> Rows:
    """Slots as rows or columns of the attention matrix. Those before the current block are finished: they are clean if
    the pattern has a clean stream. Scratch and the slots from `end` on are padding."""
    used = (slots < end[:, None]) & (slots != SCRATCH)
    clean = used & (slots < canvas.start[:, None]) & pattern.clean_stream
    if not pattern.noisy_stream:
        clean = torch.ones_like(used)
    return Rows(clean, torch.where(used, 0, -1), slots + shift, span=canvas.spans(slots))


def flat_index(row: Int[Tensor, "B S"], slots: Int[Tensor, "B R"]) -> Int[Tensor, "B S"]:
    """The index of each sequence's rows in the flattened [B R]."""
    return row + torch.arange(len(slots), device=slots.device)[:, None] * slots.shape[1]
