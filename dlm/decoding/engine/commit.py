"""Selects the predictions of a block to commit, and writes them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.rule import CommitRule


def select_commits(
    rule: CommitRule,
    is_eos: Bool[Tensor, "B K"],
    confidence: Float[Tensor, "B K"],
    open_: Bool[Tensor, "B K"],
    required: Bool[Tensor, "B 1"] | bool = True,
    first_is_final: Bool[Tensor, "B 1"] | bool = False,
) -> tuple[Bool[Tensor, "B K"], Bool[Tensor, "B K"]]:
    """The open positions of each block that the rule commits, at least one where that is `required`, and the tail that
    an EOS among them fills. With `first_is_final`, no later forward scores a block's first token again.

    Nothing behind a predicted EOS is committed before it: what a model predicts there is EOS again, which would use up
    steps, or, where training did not score the fill, a continuation that it would then believe.
    """
    ends = (is_eos & open_).int()
    candidates = open_ & (ends.cumsum(1) - ends == 0)
    rank = rule.rank(confidence).masked_fill(~candidates, -torch.inf)
    best = torch.zeros_like(open_).scatter(1, rank.argmax(1, keepdim=True), True) & required
    keep = (rule.select(confidence.masked_fill(~candidates, -1.0), rank) | best) & candidates
    tail = from_first(keep & is_eos) & open_ & ~keep
    # A first token that is alone has its final score already: it depends on the clean context only.
    alone = open_[:, :1] & ~(open_ & ~keep & ~tail)[:, 1:].any(1, keepdim=True) & first_is_final
    keep = torch.cat([keep[:, :1] | alone, keep[:, 1:]], 1)
    return keep, from_first(keep & is_eos) & open_ & ~keep


def from_first(matches: Bool[Tensor, "B K"]) -> Bool[Tensor, "B K"]:
    """True from the first match onwards."""
    return matches.cumsum(1) > 0


def write(
    canvas: Canvas,
    where: Bool[Tensor, "B S"],
    token: Int[Tensor, "B S"],
    confidence: Float[Tensor, "B S"],
    slots: Int[Tensor, "B S"] | None = None,
) -> None:
    """Commit the tokens `where` true, in the slots of the current blocks or in other `slots`. They count as committed
    by the last forward."""
    slots = canvas.block_slots() if slots is None else slots
    for state, value in (
        (canvas.x, token),
        (canvas.masked, torch.zeros_like(where)),
        (canvas.step, canvas.nfe[:, None].expand_as(slots)),
        (canvas.confidence, confidence),
    ):
        state.scatter_(1, slots, torch.where(where, value.to(state.dtype), state.gather(1, slots)))
