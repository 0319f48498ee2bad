"""One denoising step of all sequences of a canvas: a forward, and what it commits.

The state is on the device, changed in place, and nothing here waits for it: with `canvas.fixed_shapes` neither shapes
nor branches depend on values, so that a step can be compiled and replayed as a CUDA graph.

Which row sees which slot is the pattern's own predicate, applied to the slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.canvas import SCRATCH, Canvas
from dlm.denoiser import Denoiser
from dlm.types import Rows

Stop = Callable[[list[int]], bool]


def step(denoiser: Denoiser, canvas: Canvas, decoder: Decoder, eos_ids, generator, stop: Stop | None) -> None:
    """One forward, and what it commits. `stop` looks at tokens on the host, for which it waits."""
    logits = forward(denoiser, canvas)
    canvas.nfe += ~canvas.finished
    commit(canvas, decoder, logits, denoiser.token_shift, denoiser.mask_id, eos_ids, generator)
    advance(canvas, eos_ids, stop)


def forward(denoiser: Denoiser, canvas: Canvas) -> Float[Tensor, "N K V"]:
    """The logits of every position of each sequence's current block."""
    pattern, cache = denoiser.pattern, canvas.cache
    slots, current = rows_to_read(denoiser, canvas)
    cache.slots, cache.read = slots, slots_to_see(denoiser, canvas)
    is_scratch = slots == SCRATCH
    clean = torch.full_like(slots, not pattern.noisy_stream, dtype=torch.bool)
    if pattern.clean_stream and pattern.noisy_stream:
        clean = (slots < canvas.start[:, None]) & ~is_scratch
    q = Rows(clean, torch.where(is_scratch, -1, 0), slots)
    k = columns(denoiser, canvas)
    scored, from_pending = rows_to_score(denoiser, canvas, slots, current)
    filled = slots.clamp_min(0)  # scratch rows read anything
    logits = denoiser.score(
        scored.flatten(),
        canvas.x.gather(1, filled),
        filled,
        denoiser.masks(q, k),
        past_key_values=cache,
        use_cache=True,
    ).view(*scored.shape, -1)
    if denoiser.token_shift:  # the first token of a block is scored once, when the token before it is written
        if canvas.carry is None:
            canvas.carry = logits[:, 0].clone()
        canvas.carry.copy_(torch.where(from_pending[:, None], logits[:, 0], canvas.carry))
        logits = torch.cat([canvas.carry[:, None], logits[:, 1:]], 1)
    if pattern.cacheable:
        canvas.written.copy_(torch.where(canvas.finished, canvas.written, canvas.start))
        canvas.max_pending = canvas.block_size
    return logits


def rows_to_read(denoiser: Denoiser, canvas: Canvas) -> tuple[Int[Tensor, "N R"], Int[Tensor, " N"]]:
    """The slots of a forward's rows, and the row at which each sequence's current block begins: [pending ; current]
    filled up with scratch, or the whole canvas where nothing is cached."""
    pattern, device = denoiser.pattern, canvas.x.device
    live = ~canvas.finished[:, None]
    if not pattern.cacheable:
        slots = torch.arange(slots_to_see(denoiser, canvas), device=device).expand(len(canvas), -1)
        return torch.where(live & (slots < canvas.length[:, None]), slots, SCRATCH), canvas.start
    pending = canvas.start - canvas.written
    width = canvas.max_pending
    if not canvas.fixed_shapes:  # often nothing is pending, and on a CPU rows cost time
        width = int(torch.where(canvas.finished, 0, pending).max())
    ahead = torch.arange(width, device=device)
    slots = torch.where(live & (ahead < pending[:, None]), canvas.written[:, None] + ahead, SCRATCH)
    if pattern.noisy_stream:
        slots = torch.cat([slots, torch.where(live, canvas.block_slots(), SCRATCH)], 1)
    return slots, torch.full_like(canvas.start, width)


def slots_to_see(denoiser: Denoiser, canvas: Canvas) -> int:
    """How many slots are read as columns: those that hold something, or all, for a fixed shape."""
    if canvas.fixed_shapes:
        return canvas.num_slots
    end = canvas.start + canvas.block_size * denoiser.pattern.noisy_stream
    return int((end if denoiser.pattern.cacheable else canvas.length).max())


def columns(denoiser: Denoiser, canvas: Canvas) -> Rows:
    """The slots as columns of the attention matrix, scratch first: those that hold something belong to document 0."""
    pattern = denoiser.pattern
    slots = torch.arange(SCRATCH, canvas.cache.read, device=canvas.x.device).expand(len(canvas), -1)
    end = canvas.start + canvas.block_size * pattern.noisy_stream if pattern.cacheable else canvas.length
    used = (slots < end[:, None]) & (slots != SCRATCH)
    clean = torch.full_like(used, not pattern.noisy_stream)
    if pattern.clean_stream and pattern.noisy_stream:
        clean = used & (slots < canvas.start[:, None])
    return Rows(clean, torch.where(used, 0, -1), slots)


def rows_to_score(
    denoiser: Denoiser, canvas: Canvas, slots: Int[Tensor, "N R"], current: Int[Tensor, " N"]
) -> tuple[Int[Tensor, "N K"], Bool[Tensor, " N"]]:
    """The flat index of the row that scores each position of the current block, and whether the block's first one is
    scored by a row of this forward."""
    batch, width = slots.shape
    device = slots.device
    column = current[:, None] + torch.arange(canvas.block_size, device=device)
    from_pending = torch.zeros(batch, dtype=torch.bool, device=device)
    if denoiser.token_shift:
        before = slots == canvas.start[:, None] - 1
        from_pending = before.any(1)
        column = torch.cat([before.int().argmax(1, keepdim=True), column[:, 1:] - 1], 1)
    return column + torch.arange(batch, device=device)[:, None] * width, from_pending


def commit(canvas: Canvas, decoder: Decoder, logits, token_shift: bool, mask_id: int, eos_ids, generator) -> None:
    """Write the tokens that the decoder keeps, at least one per sequence.

    Training documents end in EOS up to the end of their block, so the tail of a block is easily predicted. It must not
    use up steps: an EOS ranks behind every other token, the leftmost first, and fills what is to its right.
    """
    slots = canvas.block_slots()
    offset = torch.arange(canvas.block_size, device=slots.device)
    open_ = canvas.masked.gather(1, slots) & ~canvas.finished[:, None]
    token, confidence = decoder.sample(logits, generator)
    is_eos = torch.isin(token, eos_ids)
    rank = torch.where(is_eos, -1 - offset / canvas.block_size, confidence).masked_fill(~open_, -torch.inf)
    best = torch.zeros_like(open_).scatter(1, rank.argmax(1, keepdim=True), True)
    keep = (decoder.select(confidence.masked_fill(~open_, -1.0), rank) | best) & open_
    if token_shift:
        # A first token that is alone has its final score already: it was fixed by the clean context.
        keep[:, 0] |= open_[:, 0] & ~(open_[:, 1:] & ~keep[:, 1:]).any(1)
    tail = ((keep & is_eos).cumsum(1) > 0) & open_ & ~keep
    token = torch.where(tail, eos_ids[0] if len(eos_ids) else mask_id, token)
    for state, value in (
        (canvas.x, token),
        (canvas.masked, torch.zeros_like(keep)),
        (canvas.step, canvas.nfe[:, None].expand_as(slots)),
        (canvas.confidence, confidence),
    ):
        state.scatter_(1, slots, torch.where(keep | tail, value.to(state.dtype), state.gather(1, slots)))


def advance(canvas: Canvas, eos_ids: Int[Tensor, " E"], stop: Stop | None) -> None:
    """Finish the sequences that have reached EOS, a stop or their length; move the others on at the end of a block."""
    filled = canvas.filled()
    slots = torch.arange(canvas.num_slots + 1, device=canvas.x.device)
    new = (slots >= canvas.prompt_length[:, None]) & (slots < filled[:, None])
    ended = (torch.isin(canvas.x, eos_ids) & new).any(1)
    ended |= filled >= canvas.prompt_length + canvas.max_new_tokens
    block_done = filled >= canvas.start + canvas.block_size
    if stop is not None:
        for n in (block_done & ~ended & ~canvas.finished).nonzero()[:, 0].tolist():
            ended[n] |= stop(canvas.x[n, canvas.prompt_length[n] : filled[n]].tolist())
    canvas.finished |= ended
    canvas.start += canvas.block_size * (block_done & ~canvas.finished)
