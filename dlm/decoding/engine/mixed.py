"""One canvas, several rules: every sequence is decoded by the rule and with the generator of its own request.

B sequences (or blocks)        K positions of a block        M predicted positions        V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule


@dataclass(frozen=True, eq=False)
class Member:
    """A request of a session, and the rule by which its prompts are decoded."""

    request: Request
    rule: CommitRule

    def shares_draws(self, other: Member) -> bool:
        """Whether the tokens of both can be chosen in one call: they are of one request, or greedy by equal rules."""
        greedy = self.rule.temperature == other.rule.temperature == 0
        return self is other or (greedy and same(self.rule, other.rule))


def same(rule: CommitRule, other: CommitRule) -> bool:
    """Whether two rules decide alike."""
    return rule is other or (type(rule) is type(other) and vars(rule) == vars(other))


class Mixed(CommitRule):
    """The rules of a canvas's sequences as one. `groups` are members, each with the sequences that it decides for; the
    sequences of no group are idle."""

    def __init__(self, canvas: Canvas, groups: list[tuple[Member, Bool[Tensor, " B"]]]):
        super().__init__()
        self.canvas, self.groups = canvas, groups
        self.remask_below = groups[0][0].rule.remask_below

    def select(self, confidence, rank):
        return self.by_sequence(lambda member, *blocks: member.rule.select(*blocks), confidence, rank)

    def rank(self, confidence):
        return self.by_sequence(lambda member, blocks: member.rule.rank(blocks), confidence)

    def by_sequence(self, call: Callable[..., Tensor], *values: Float[Tensor, "B K"]) -> Tensor:
        made = None
        for member, sequences in self.groups:
            part = call(member, *(value[sequences] for value in values))
            made = torch.zeros_like(values[0], dtype=part.dtype) if made is None else made
            made[sequences] = part
        return made

    def confidence(self, logits, token):
        made = torch.zeros_like(token, dtype=torch.promote_types(logits.dtype, torch.float32))
        for member, rows in self.rows():
            made[:, rows] = member.rule.confidence(logits[:, rows], token[:, rows]).to(made.dtype)
        return made

    def sample(self, logits, generator):
        """The rows of every group are drawn with its own generator, as if the others were not there."""
        token = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
        confidence = torch.zeros_like(token, dtype=torch.promote_types(logits.dtype, torch.float32))
        for member, rows in self.rows():
            drawn, sure = member.rule.sample(logits[:, rows], member.request.generator)
            token[:, rows], confidence[:, rows] = drawn, sure.to(confidence.dtype)
        return token, confidence

    def rows(self) -> list[tuple[Member, Bool[Tensor, " M"]]]:
        """Every member with its rows among those that the last forward scored."""
        canvas = self.canvas
        scored = torch.ones_like(canvas.predicted) if canvas.fixed_shapes else canvas.predicted
        of = scored.nonzero()[:, 0]
        found = [(member, sequences[of]) for member, sequences in self.groups]
        return [(member, rows) for member, rows in found if bool(rows.any())]
