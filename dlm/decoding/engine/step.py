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

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.engine.canvas import SCRATCH, Canvas
from dlm.decoding.engine.commit import behind, kept, write
from dlm.decoding.engine.plan import ForwardPlan, flat, forward_over
from dlm.decoding.engine.request import Stop
from dlm.decoding.engine.rule import CommitRule
from dlm.model.denoiser import Denoiser


def step(
    denoiser: Denoiser,
    canvas: Canvas,
    rule: CommitRule,
    generator: torch.Generator | None = None,
    stop: Stop | None = None,
) -> None:
    """One forward, and what it commits. `stop` looks at tokens on the host, for which it waits."""
    token, confidence = predict(denoiser, canvas, rule, generator)
    commit(canvas, rule, token, confidence, denoiser.token_shift)
    advance(canvas, stop)


def predict(
    denoiser: Denoiser, canvas: Canvas, rule: CommitRule, generator: torch.Generator | None
) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """A token for every open position of each sequence's current block, and its confidence; anything elsewhere."""
    revises = rule.remask_below > 0
    logits = forward(denoiser, canvas, revises)
    token, confidence = rule.sample(logits[None], generator)
    asked = canvas.asked
    if revises:  # of a committed token, its own probability
        committed, held = canvas.committed(), canvas.x.gather(1, canvas.block_slots())
        seen, held = (t.view_as(token) if canvas.fixed_shapes else t[asked][None] for t in (committed, held))
        token = torch.where(seen, held, token)
        confidence = rule.confidence(logits[None], token)
        canvas.certainty.masked_fill_(committed & ~asked, 1.0)  # it is never scored again
    for state, new in zip((canvas.token, canvas.certainty), (token, confidence), strict=True):
        if canvas.fixed_shapes:
            state.copy_(torch.where(asked, new.view_as(asked), state))
        else:
            state[asked] = new[0].to(state.dtype)
    return canvas.token, canvas.certainty


def forward(denoiser: Denoiser, canvas: Canvas, revises: bool = False) -> Float[Tensor, "M V"]:
    """The logits of the positions of each sequence's current block that are asked for (`canvas.asked`), in order; with
    fixed shapes of all positions."""
    plan, asked = planned(denoiser, canvas, revises)
    canvas.asked.copy_(asked)
    logits = plan.logits(denoiser, canvas)
    if denoiser.pattern.cacheable:
        canvas.written.copy_(torch.where(canvas.finished, canvas.written, canvas.start))
        canvas.max_pending = canvas.block_size
    return logits


def planned(denoiser: Denoiser, canvas: Canvas, revises: bool = False) -> tuple[ForwardPlan, Bool[Tensor, "N K"]]:
    """The forward of the current blocks, and the positions that it is asked for: those that are masked, with `revises`
    new tokens as well. The head is most of a small model's work, so on a CPU it sees no other row."""
    slots, current = rows_to_read(denoiser, canvas)
    scored, fresh = rows_to_score(denoiser, canvas, slots, current)
    asked = (canvas.open() | canvas.committed() if revises else canvas.open()) & fresh
    wanted = scored.flatten() if canvas.fixed_shapes else scored[asked]
    read, end = slots_to_see(denoiser, canvas)
    to_grid = -canvas.start[:, None] % canvas.block_size  # how far a block begins before one of the grid
    return forward_over(denoiser.pattern, canvas, slots, read, end, wanted, to_grid), asked


def rows_to_read(denoiser: Denoiser, canvas: Canvas) -> tuple[Int[Tensor, "N R"], Int[Tensor, " N"]]:
    """The slots of a forward's rows, and the row at which each sequence's current block begins: [pending ; current]
    filled up with scratch, or the whole canvas where nothing is cached."""
    pattern, device = denoiser.pattern, canvas.x.device
    live = ~canvas.finished[:, None]
    if not pattern.cacheable:
        slots = torch.arange(slots_to_see(denoiser, canvas)[0], device=device).expand(len(canvas), -1)
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


def slots_to_see(denoiser: Denoiser, canvas: Canvas) -> tuple[int, Int[Tensor, " N"]]:
    """How many slots are read as columns, and where those of each sequence end that hold something. For a fixed shape
    all are read."""
    pattern = denoiser.pattern
    end = canvas.start + canvas.block_size * pattern.noisy_stream if pattern.cacheable else canvas.length
    return canvas.num_slots if canvas.fixed_shapes else int(end.max()), end


def rows_to_score(
    denoiser: Denoiser, canvas: Canvas, slots: Int[Tensor, "N R"], current: Int[Tensor, " N"]
) -> tuple[Int[Tensor, "N K"], Bool[Tensor, "N K"]]:
    """The flat index of the row that scores each position of the current block, and whether it is in this forward. With
    the shift a block's first token is scored once, by the token before it when that is written."""
    row = current[:, None] + torch.arange(canvas.block_size, device=slots.device)
    fresh = torch.ones_like(row, dtype=torch.bool)
    if denoiser.token_shift:
        before = slots == canvas.start[:, None] - 1
        fresh = torch.cat([before.any(1, keepdim=True), fresh[:, 1:]], 1)
        row = torch.cat([before.int().argmax(1, keepdim=True), row[:, 1:] - 1], 1)
    return flat(row, slots), fresh


def commit(
    canvas: Canvas, rule: CommitRule, token: Int[Tensor, "N K"], confidence: Float[Tensor, "N K"], token_shift: bool
) -> None:
    """Write the tokens that the rule keeps, at least one per sequence, and the tail behind an EOS."""
    open_, committed = canvas.open(), canvas.committed()
    if canvas.sliding:  # what a new block has to the right of an EOS that is already there is no answer
        open_ &= ~behind(committed & canvas.is_eos(canvas.x.gather(1, canvas.block_slots())))
    keep, tail = kept(rule, canvas.is_eos(token), confidence, open_, first_is_final=token_shift)
    write(canvas, keep | tail, torch.where(tail, canvas.tail_id, token), confidence)
    if rule.remask_below > 0:
        weak = committed & (confidence < rule.remask_below)
        remask(canvas, weak, confidence, (keep | tail).sum(1))


def remask(
    canvas: Canvas, weak: Bool[Tensor, "N K"], probability: Float[Tensor, "N K"], num_committed: Int[Tensor, " N"]
) -> None:
    """Mask `weak` tokens again, the least probable first, and one fewer than this forward has committed: every forward
    brings a block nearer to its end. An EOS, and what it has ended, stays."""
    slots = canvas.block_slots()
    token, masked = canvas.x.gather(1, slots), canvas.masked.gather(1, slots)
    weak &= ~behind(canvas.committed() & canvas.is_eos(token))
    order = probability.masked_fill(~weak, torch.inf).argsort(1).argsort(1)
    weak &= order < num_committed[:, None] - 1
    canvas.x.scatter_(1, slots, torch.where(weak, canvas.mask_id, token))
    canvas.masked.scatter_(1, slots, masked | weak)


def advance(canvas: Canvas, stop: Stop | None, may: Bool[Tensor, " N"] | bool = True) -> None:
    """Of the sequences that `may`, finish those that have reached EOS, a stop or their length, and move the others on:
    at the end of a block to the first block that has masks or, if sliding, to their first masked slot."""
    filled = canvas.filled()
    slots = torch.arange(canvas.num_slots + 1, device=canvas.x.device)
    new = (slots >= canvas.prompt_length[:, None]) & (slots < filled[:, None])
    ended = (canvas.is_eos(canvas.x) & new).any(1)
    ended |= filled >= canvas.prompt_length + canvas.max_new_tokens
    moved = (filled >= canvas.start + canvas.grid) & may
    if stop is not None:
        for n in (moved & ~ended & ~canvas.finished).nonzero()[:, 0].tolist():
            ended[n] |= stop(canvas.x[n, canvas.prompt_length[n] : filled[n]].tolist())
    canvas.finished |= ended & may
    canvas.start += (filled // canvas.grid * canvas.grid - canvas.start) * (moved & ~canvas.finished)
