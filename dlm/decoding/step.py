"""One denoising step of all sequences of a canvas: a forward, and what it commits.

The state is on the device, changed in place, and nothing here waits for it: with `canvas.fixed_shapes` neither shapes
nor branches depend on values, so that a step can be compiled and replayed as a CUDA graph.

Which row sees which slot is the pattern's own predicate, applied to the slots. A sliding block does not begin on the
grid of blocks, so the predicate is told positions that are shifted until it does; the model is told the true ones.
Where the clean stream is causal token by token, that changes nothing: its keys and values are exactly those of AR.
Where it is causal by block, tokens see the others of their block on the grid of the forward that wrote them, so that
their keys and values depend on what was committed together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.canvas import SCRATCH, Canvas
from dlm.decoding.commit import behind, kept, write
from dlm.model.denoiser import Denoiser
from dlm.types import Rows

Stop = Callable[[list[int]], bool]


def step(denoiser: Denoiser, canvas: Canvas, decoder: Decoder, eos_ids, generator, stop: Stop | None) -> None:
    """One forward, and what it commits. `stop` looks at tokens on the host, for which it waits."""
    token, confidence = predict(denoiser, canvas, decoder, generator)
    canvas.nfe += ~canvas.finished
    commit(canvas, decoder, token, confidence, denoiser.token_shift, denoiser.mask_id, eos_ids)
    advance(canvas, eos_ids, stop)


def predict(
    denoiser: Denoiser, canvas: Canvas, decoder: Decoder, generator
) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """A token for every open position of each sequence's current block, and its confidence; anything elsewhere."""
    revises = decoder.remask_below > 0
    logits, asked = forward(denoiser, canvas, revises)
    token, confidence = decoder.sample(logits[None], generator)
    if revises:  # of a committed token, its own probability
        committed, held = canvas.committed(), canvas.x.gather(1, canvas.block_slots())
        seen, held = (t.view_as(token) if canvas.fixed_shapes else t[asked][None] for t in (committed, held))
        token = torch.where(seen, held, token)
        confidence = decoder.confidence(logits[None], token)
        canvas.certainty.masked_fill_(committed & ~asked, 1.0)  # it is never scored again
    for state, new in zip((canvas.token, canvas.certainty), (token, confidence), strict=True):
        if canvas.fixed_shapes:
            state.copy_(torch.where(asked, new.view_as(asked), state))
        else:
            state[asked] = new[0].to(state.dtype)
    return canvas.token, canvas.certainty


def forward(
    denoiser: Denoiser, canvas: Canvas, revises: bool = False
) -> tuple[Float[Tensor, "M V"], Bool[Tensor, "N K"]]:
    """The logits of the positions of each sequence's current block that are `asked` for, in order; with fixed shapes of
    all positions. Asked for are those that are masked, with `revises` new tokens as well. The head is most of a small
    model's work, so on a CPU it sees no other row."""
    pattern, cache = denoiser.pattern, canvas.cache
    slots, current = rows_to_read(denoiser, canvas)
    cache.slots, cache.read = slots, slots_to_see(denoiser, canvas)
    is_scratch = slots == SCRATCH
    canvas.rows += (~is_scratch).sum(1)
    clean = torch.full_like(slots, not pattern.noisy_stream, dtype=torch.bool)
    if pattern.clean_stream and pattern.noisy_stream:
        clean = (slots < canvas.start[:, None]) & ~is_scratch
    q = Rows(clean, torch.where(is_scratch, -1, 0), slots + to_grid(canvas))
    masks = denoiser.masks(q, columns(denoiser, canvas))
    scored, fresh = rows_to_score(denoiser, canvas, slots, current)
    asked = (canvas.open() | canvas.committed() if revises else canvas.open()) & fresh
    rows = scored.flatten() if canvas.fixed_shapes else scored[asked]
    filled = slots.clamp_min(0)  # scratch rows read anything
    logits = denoiser.score(rows, canvas.x.gather(1, filled), filled, masks, past_key_values=cache, use_cache=True)
    if pattern.cacheable:
        canvas.written.copy_(torch.where(canvas.finished, canvas.written, canvas.start))
        canvas.max_pending = canvas.block_size
    return logits, asked


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
    return Rows(clean, torch.where(used, 0, -1), slots + to_grid(canvas))


def to_grid(canvas: Canvas) -> Int[Tensor, "N 1"]:
    """How far each sequence's current block begins before a block of the grid."""
    return -canvas.start[:, None] % canvas.block_size


def rows_to_score(
    denoiser: Denoiser, canvas: Canvas, slots: Int[Tensor, "N R"], current: Int[Tensor, " N"]
) -> tuple[Int[Tensor, "N K"], Bool[Tensor, "N K"]]:
    """The flat index of the row that scores each position of the current block, and whether it is in this forward. With
    the shift a block's first token is scored once, by the token before it when that is written."""
    batch, width = slots.shape
    device = slots.device
    column = current[:, None] + torch.arange(canvas.block_size, device=device)
    fresh = torch.ones_like(column, dtype=torch.bool)
    if denoiser.token_shift:
        before = slots == canvas.start[:, None] - 1
        fresh = torch.cat([before.any(1, keepdim=True), fresh[:, 1:]], 1)
        column = torch.cat([before.int().argmax(1, keepdim=True), column[:, 1:] - 1], 1)
    return column + torch.arange(batch, device=device)[:, None] * width, fresh


def commit(
    canvas: Canvas,
    decoder: Decoder,
    token: Int[Tensor, "N K"],
    confidence: Float[Tensor, "N K"],
    token_shift: bool,
    mask_id: int,
    eos_ids: Int[Tensor, " E"],
) -> None:
    """Write the tokens that the decoder keeps, at least one per sequence, and the tail behind an EOS."""
    open_, committed = canvas.open(), canvas.committed()
    if canvas.sliding:  # what a new block has to the right of an EOS that is already there is no answer
        open_ &= ~behind(committed & torch.isin(canvas.x.gather(1, canvas.block_slots()), eos_ids))
    keep, tail = kept(decoder, torch.isin(token, eos_ids), confidence, open_, first_is_final=token_shift)
    token = torch.where(tail, eos_ids[0] if len(eos_ids) else mask_id, token)
    write(canvas, keep | tail, token, confidence)
    if decoder.remask_below > 0:
        weak = committed & (confidence < decoder.remask_below)
        remask(canvas, weak, confidence, (keep | tail).sum(1), mask_id, eos_ids)


def remask(
    canvas: Canvas,
    weak: Bool[Tensor, "N K"],
    probability: Float[Tensor, "N K"],
    num_committed: Int[Tensor, " N"],
    mask_id: int,
    eos_ids: Int[Tensor, " E"],
) -> None:
    """Mask `weak` tokens again, the least probable first, and one fewer than this forward has committed: every forward
    brings a block nearer to its end. An EOS, and what it has ended, stays."""
    slots = canvas.block_slots()
    token, masked = canvas.x.gather(1, slots), canvas.masked.gather(1, slots)
    weak &= ~behind(canvas.committed() & torch.isin(token, eos_ids))
    order = probability.masked_fill(~weak, torch.inf).argsort(1).argsort(1)
    weak &= order < num_committed[:, None] - 1
    canvas.x.scatter_(1, slots, torch.where(weak, mask_id, token))
    canvas.masked.scatter_(1, slots, masked | weak)


def advance(canvas: Canvas, eos_ids: Int[Tensor, " E"], stop: Stop | None) -> None:
    """Finish the sequences that have reached EOS, a stop or their length; move the others on, at the end of a
    block or, if sliding, to their first masked slot."""
    filled = canvas.filled()
    slots = torch.arange(canvas.num_slots + 1, device=canvas.x.device)
    new = (slots >= canvas.prompt_length[:, None]) & (slots < filled[:, None])
    ended = (torch.isin(canvas.x, eos_ids) & new).any(1)
    ended |= filled >= canvas.prompt_length + canvas.max_new_tokens
    moved = filled >= canvas.start + (1 if canvas.sliding else canvas.block_size)
    if stop is not None:
        for n in (moved & ~ended & ~canvas.finished).nonzero()[:, 0].tolist():
            ended[n] |= stop(canvas.x[n, canvas.prompt_length[n] : filled[n]].tolist())
    canvas.finished |= ended
    canvas.start += (filled - canvas.start) * (moved & ~canvas.finished)
