"""What one forward over a cache reads, and the only place where it is made and counted."""

from __future__ import annotations

from collections.abc import Callable
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
    """A forward of N sequences with R rows each. `slots` are where their keys and values go (SCRATCH: the row reads
    anything and nothing sees it); `rows` and `columns` are what the attention predicate knows of the rows and of the
    slots that they may see, scratch first. `scored` are the rows that are wanted, flat in [N R]. A row's token is the
    one in its slot unless there are `embeds`, and its position is its slot unless there are `positions`."""

    slots: Int[Tensor, "N R"]
    rows: Rows
    columns: Rows
    scored: Int[Tensor, " M"]
    positions: Int[Tensor, "N R"] | None = None
    embeds: Float[Tensor, "N R D"] | None = None

    def hidden(self, denoiser: Denoiser, canvas: Canvas) -> Float[Tensor, "M D"]:
        """Make the forward: the hidden states of the scored rows."""
        return self.made_by(denoiser.hidden, denoiser, canvas)

    def logits(self, denoiser: Denoiser, canvas: Canvas) -> Float[Tensor, "M V"]:
        """Make the forward: the logits of the scored rows."""
        return self.made_by(denoiser.score, denoiser, canvas)

    def made_by(self, network: Callable[..., Tensor], denoiser: Denoiser, canvas: Canvas) -> Tensor:
        """One forward of the network, which writes its keys and values into the cache and counts."""
        cache = canvas.cache
        cache.slots, cache.read = self.slots, self.columns.position.shape[1] - 1
        canvas.rows += (self.slots != SCRATCH).sum(1)
        canvas.nfe += ~canvas.finished
        filled = self.slots.clamp_min(0)
        positions = filled if self.positions is None else self.positions.clamp_min(0)
        ids = canvas.x.gather(1, filled) if self.embeds is None else None
        masks = denoiser.masks(self.rows, self.columns)
        return network(
            self.scored, ids, positions, masks, inputs_embeds=self.embeds, past_key_values=cache, use_cache=True
        )


def forward_over(
    pattern: AttentionPattern,
    canvas: Canvas,
    slots: Int[Tensor, "N R"],
    read: int,
    end: Int[Tensor, " N"],
    scored: Int[Tensor, " M"],
    shift: Int[Tensor, "N 1"] | int = 0,
    embeds: Float[Tensor, "N R D"] | None = None,
) -> ForwardPlan:
    """A forward that reads `slots` and may see the first `read` slots, of which those before each sequence's `end` hold
    something. The predicate is told positions that are moved by `shift`."""
    columns = torch.arange(SCRATCH, read, device=slots.device).expand(len(slots), -1)
    rows, columns = (described(pattern, s, canvas.start, end, shift) for s in (slots, columns))
    return ForwardPlan(slots, rows, columns, scored, embeds=embeds)


def described(
    pattern: AttentionPattern,
    slots: Int[Tensor, "N S"],
    start: Int[Tensor, " N"],
    end: Int[Tensor, " N"],
    shift: Int[Tensor, "N 1"] | int,
) -> Rows:
    """Slots as rows or columns of the attention matrix: what lies before `start` is finished, and clean where the
    pattern knows clean tokens; scratch and what lies from `end` on is padding."""
    used = (slots < end[:, None]) & (slots != SCRATCH)
    clean = used & (slots < start[:, None]) & pattern.clean_stream
    if not pattern.noisy_stream:
        clean = torch.ones_like(used)
    return Rows(clean, torch.where(used, 0, -1), slots + shift)


def flat(row: Int[Tensor, "N S"], slots: Int[Tensor, "N R"]) -> Int[Tensor, "N S"]:
    """The index in [N R], flattened, of these rows of each sequence."""
    return row + torch.arange(len(slots), device=slots.device)[:, None] * slots.shape[1]
