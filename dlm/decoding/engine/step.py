"""One denoising step of all sequences of a canvas: a forward, and the commit of its predictions.

The state is on the device and changed in place, and the host never waits for it: with `canvas.fixed_shapes` neither
shapes nor branches depend on values, so that its parts can be compiled and the whole replayed as a CUDA graph.

The pattern's predicate, applied to the slots, says which row sees which slot. A block that slides, or whose grid begins
behind the prompt, does not begin at a multiple of its size, so the predicate is given positions that are shifted until
it does; the model is given the true ones.
If the clean stream is causal token by token, the shift changes nothing: keys and values are exactly those of AR. If it
is causal by block, a token sees the others of its block on the shifted grid of the forward that wrote it, so that its
keys and values depend on which tokens were committed together.

    B sequences        K positions of a block        R rows that a forward reads of each sequence        V vocabulary
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.attention.compilation import compiled
from dlm.decoding.engine.canvas import SCRATCH, Canvas
from dlm.decoding.engine.commit import from_first, select_commits, write
from dlm.decoding.engine.graph import compiled_layers
from dlm.decoding.engine.plan import ForwardPlan, flat_index, plan_forward
from dlm.decoding.engine.rule import CommitRule
from dlm.model.denoiser import Denoiser


def step(
    denoiser: Denoiser,
    canvas: Canvas,
    rule: CommitRule,
    generator: torch.Generator | None = None,
    compile: bool = False,
) -> None:
    """One forward, and the commit of its predictions. With `compile`, the layers of the network and what comes before
    and after it are compiled, and the network reads only the used tiles of the cache."""
    before, after = (compiled(part) if compile else part for part in (plan_step, conclude))
    with compiled_layers(denoiser) if compile else nullcontext():
        plan, predicted = before(denoiser, canvas, rule.remask_below > 0)
        hidden = read(denoiser, canvas, plan, predicted, tiled=compile)
        after(denoiser, canvas, rule, hidden, generator)


def predict(
    denoiser: Denoiser, canvas: Canvas, rule: CommitRule, generator: torch.Generator | None
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Run one forward: a token and its confidence for every open position of each current block; elsewhere the values
    have no meaning."""
    plan, predicted = plan_step(denoiser, canvas, rule.remask_below > 0)
    return sample(denoiser, canvas, rule, read(denoiser, canvas, plan, predicted), generator)


def forward(denoiser: Denoiser, canvas: Canvas) -> Float[Tensor, "M V"]:
    """Run the forward of the current blocks: the logits of the masked positions (`canvas.predicted`), in order; with
    fixed shapes, those of all positions."""
    return denoiser.logits(read(denoiser, canvas, *plan_step(denoiser, canvas, revises=False)))


def read(
    denoiser: Denoiser, canvas: Canvas, plan: ForwardPlan, predicted: Bool[Tensor, "B K"], tiled: bool = False
) -> Float[Tensor, "M D"]:
    """Run the network: the hidden states that score the `predicted` positions, in order; with fixed shapes, all."""
    hidden = plan.hidden(denoiser, canvas, tiled)
    canvas.predicted.copy_(predicted)
    if denoiser.pattern.cacheable:
        canvas.written.copy_(torch.where(canvas.finished, canvas.written, canvas.start))
    return hidden


def conclude(
    denoiser: Denoiser,
    canvas: Canvas,
    rule: CommitRule,
    hidden: Float[Tensor, "M D"],
    generator: torch.Generator | None,
) -> None:
    """What follows the network in a step: logits, predictions, commits, and the move to the next block."""
    token, confidence = sample(denoiser, canvas, rule, hidden, generator)
    commit(canvas, rule, token, confidence, denoiser.token_shift)
    advance(canvas)


def sample(
    denoiser: Denoiser,
    canvas: Canvas,
    rule: CommitRule,
    hidden: Float[Tensor, "M D"],
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """A token and its confidence for every predicted position; the others keep their last ones."""
    logits, predicted = denoiser.logits(hidden), canvas.predicted
    token, confidence = rule.sample(logits[None], generator)
    if rule.remask_below > 0:  # a committed token is scored by its own probability
        committed, present = canvas.committed(), canvas.x.gather(1, canvas.block_slots())
        is_committed, present = (
            t.view_as(token) if canvas.fixed_shapes else t[predicted][None] for t in (committed, present)
        )
        token = torch.where(is_committed, present, token)
        confidence = rule.confidence(logits[None], token)
        canvas.certainty.masked_fill_(committed & ~predicted, 1.0)  # it is never scored again
    for state, new in zip((canvas.token, canvas.certainty), (token, confidence), strict=True):
        if canvas.fixed_shapes:
            state.copy_(torch.where(predicted, new.view_as(predicted), state))
        else:
            state[predicted] = new[0].to(state.dtype)
    return canvas.token, canvas.certainty


def plan_step(denoiser: Denoiser, canvas: Canvas, revises: bool = False) -> tuple[ForwardPlan, Bool[Tensor, "B K"]]:
    """The plan of the forward, and the positions of the current blocks that it predicts: the masked ones and, with
    `revises`, the new tokens. The head is most of a small model's work, so on a CPU it reads only the rows that score
    these positions."""
    slots, current = rows_to_read(denoiser, canvas)
    scoring_row, is_scored = rows_to_score(denoiser, canvas, slots, current)
    predicted = (canvas.open() | canvas.committed() if revises else canvas.open()) & is_scored
    scored = scoring_row.flatten() if canvas.fixed_shapes else scoring_row[predicted]
    read, end = slots_to_see(denoiser, canvas)
    return plan_forward(denoiser.pattern, canvas, slots, read, end, scored), predicted


def rows_to_read(denoiser: Denoiser, canvas: Canvas) -> tuple[Int[Tensor, "B R"], Int[Tensor, " B"]]:
    """The slots of a forward's rows, and the row at which each sequence's current block begins. The rows are
    [pending ; current], padded with scratch, or all that there is to see if the pattern is not cacheable."""
    pattern, device = denoiser.pattern, canvas.x.device
    live = ~canvas.finished[:, None]
    if not pattern.cacheable:
        slots = torch.arange(slots_to_see(denoiser, canvas)[0], device=device).expand(len(canvas), -1)
        return torch.where(live & (slots < slots_to_see(denoiser, canvas)[1][:, None]), slots, SCRATCH), canvas.start
    pending = canvas.start - canvas.written
    width = canvas.max_pending
    if not canvas.fixed_shapes:  # often nothing is pending, and on a CPU padding costs time
        width = int(torch.where(canvas.finished, 0, pending).max())
    ahead = torch.arange(width, device=device)
    slots = torch.where(live & (ahead < pending[:, None]), canvas.written[:, None] + ahead, SCRATCH)
    if pattern.noisy_stream:
        slots = torch.cat([slots, torch.where(live, canvas.block_slots(), SCRATCH)], 1)
    return slots, torch.full_like(canvas.start, width)


def slots_to_see(denoiser: Denoiser, canvas: Canvas) -> tuple[int, Int[Tensor, " B"]]:
    """The number of slots that are columns of the attention matrix (with fixed shapes all of them), and the slot from
    which on each sequence's columns are empty."""
    pattern = denoiser.pattern
    whole = pattern.whole_canvas and not pattern.cacheable
    end = canvas.length if whole else canvas.start + canvas.block_size * pattern.noisy_stream
    return canvas.num_slots if canvas.fixed_shapes else int(end.max()), end


def rows_to_score(
    denoiser: Denoiser, canvas: Canvas, slots: Int[Tensor, "B R"], current: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The row that scores each position of the current block, flat in [B R], and whether this forward reads it. With
    the shift, a block's first token is scored once, in the forward that writes the token before it."""
    row = current[:, None] + torch.arange(canvas.block_size, device=slots.device)
    is_read = torch.ones_like(row, dtype=torch.bool)
    if denoiser.token_shift:
        before = slots == canvas.start[:, None] - 1
        is_read = torch.cat([before.any(1, keepdim=True), is_read[:, 1:]], 1)
        row = torch.cat([before.int().argmax(1, keepdim=True), row[:, 1:] - 1], 1)
    return flat_index(row, slots), is_read


def commit(
    canvas: Canvas, rule: CommitRule, token: Int[Tensor, "B K"], confidence: Float[Tensor, "B K"], token_shift: bool
) -> None:
    """Write the tokens that the rule commits, at least one per sequence, and the tail after an EOS."""
    open_, committed = canvas.open(), canvas.committed()
    if canvas.sliding:  # positions after an EOS that is already there do not belong to the answer
        open_ &= ~from_first(committed & canvas.is_eos(canvas.x.gather(1, canvas.block_slots())))
    keep, tail = select_commits(rule, canvas.is_eos(token), confidence, open_, first_is_final=token_shift)
    write(canvas, keep | tail, torch.where(tail, canvas.tail_id, token), confidence)
    if rule.remask_below > 0:
        weak = committed & (confidence < rule.remask_below)
        remask(canvas, weak, confidence, (keep | tail).sum(1))


def remask(
    canvas: Canvas, weak: Bool[Tensor, "B K"], probability: Float[Tensor, "B K"], num_committed: Int[Tensor, " B"]
) -> None:
    """Mask `weak` tokens again, the least probable first, but fewer than this forward has committed: so every forward
    leaves fewer masks, and decoding ends. An EOS and the tail after it stay."""
    slots = canvas.block_slots()
    token, masked = canvas.x.gather(1, slots), canvas.masked.gather(1, slots)
    weak &= ~from_first(canvas.committed() & canvas.is_eos(token))
    order = probability.masked_fill(~weak, torch.inf).argsort(1).argsort(1)
    weak &= order < num_committed[:, None] - 1
    canvas.x.scatter_(1, slots, torch.where(weak, canvas.mask_id, token))
    canvas.masked.scatter_(1, slots, masked | weak)


def advance(canvas: Canvas, may: Bool[Tensor, " B"] | bool = True) -> None:
    """Of the sequences that `may` advance, finish those that have reached EOS or their length. Move the others at the
    end of a block to the first block that has masks or, if sliding, to their first masked slot."""
    filled = canvas.filled()
    slots = torch.arange(canvas.num_slots + 1, device=canvas.x.device)
    new = (slots >= canvas.prompt_length[:, None]) & (slots < filled[:, None])
    ended = (canvas.is_eos(canvas.x) & new).any(1)
    ended |= filled >= canvas.prompt_length + canvas.limit
    moved = (filled >= canvas.start + canvas.grid) & may
    canvas.finished |= ended & may
    canvas.start += (canvas.block_begin(filled) - canvas.start) * (moved & ~canvas.finished)
