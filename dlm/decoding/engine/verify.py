"""Speculative decoding: tokens that were guessed are verified by one autoregressive forward, and the right ones kept.

Exactly what AR decoding of the same weights gives, in fewer forwards: the same tokens if greedy, the same distribution
if sampling (the rejection rule of arXiv 2211.17192). What a draft is worth only changes how many tokens a forward
brings; where it comes from is the decoder's own business (`self_speculative`, `lookup`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import SCRATCH, Canvas
from dlm.decoding.engine.commit import write
from dlm.decoding.engine.loop import Batches
from dlm.decoding.engine.plan import ForwardPlan
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import advance
from dlm.model.denoiser import Denoiser
from dlm.types import Rows


class Speculation(AttentionPattern):
    """Clean rows are causal. A noisy row is in the window that begins at position `view`: it sees the clean tokens
    before that and its own window as far as the pattern `draft` lets it, on a grid with a block at `view`."""

    clean_stream = True
    blockwise = False

    def __init__(self, draft: AttentionPattern):
        super().__init__(draft.block_size)
        self.draft = draft

    def allowed(self, q, k):
        to_grid = -q.view % self.block_size
        pairs = torch.broadcast_shapes(q.view.shape, k.view.shape)
        q_all, k_all = (rows.map(lambda t: t.expand(pairs)) for rows in (q, k))
        on_grid = (replace(rows, position=rows.position + to_grid) for rows in (q_all, k_all))
        drafts = self.draft.allowed(*on_grid) & (~k.clean | (k.position < q.view))
        return torch.where(q.clean, k.clean & (k.position <= q.position), drafts)


class Verifier(Denoiser):
    """A model in its causal mode, with windows under the pattern `draft`, which are scored with or without the model's
    own token shift, `draft_shift`."""

    def __init__(self, denoiser: Denoiser, draft: AttentionPattern):
        super().__init__(denoiser.model, Speculation(draft), denoiser.mask_id, True, denoiser.layer_types)
        self.draft_shift = denoiser.token_shift


class Speculative(Batches):
    """Verifies drafts and writes further ones. The current block, of which there is one at every position, has room for
    a draft and the token after it. `stop` is asked after every forward."""

    sliding = True

    @abstractmethod
    def draft(self, pattern: AttentionPattern) -> AttentionPattern:
        """What rows of windows see, in blocks of a draft and the token after it."""

    @abstractmethod
    def cycle(self, denoiser: Verifier, rule: CommitRule, canvas: Canvas, request: Request) -> Cycle:
        """The forwards of a canvas."""

    def mode(self, denoiser):
        return Verifier(denoiser, self.draft(denoiser.pattern))

    def begin(self, denoiser, rule, canvas, request):
        return self.cycle(denoiser, rule, canvas, request).forward


class Cycle(ABC):
    """The forwards of a canvas, whose last `spare` slots are for windows and never filled. Its sequences are at
    different positions; each has drafted `lengths` tokens, `drafted` at most, from the distributions `proposal` if they
    sample. These lie at `canvas.start` and after it, marked as masked. `canvas.written` tokens are in the cache, of
    which nothing will change."""

    def __init__(self, both: Verifier, rule: CommitRule, canvas: Canvas, request: Request, spare: int = 0):
        self.both, self.rule, self.canvas, self.request = both, rule, canvas, request
        self.size, self.window_slot = canvas.block_size, canvas.num_slots - spare
        self.drafted, self.lengths = 0, torch.zeros_like(canvas.start)
        self.proposal: Float[Tensor, "N drafted V"] | None = None

    @abstractmethod
    def forward(self) -> None:
        """One forward, what it verifies and what it drafts."""

    def propose(
        self,
        token: Int[Tensor, "N M"],
        lengths: Int[Tensor, " N"],
        proposal: Float[Tensor, "N M V"] | None,
    ) -> None:
        """Put a draft behind the committed tokens of the sequences that go on. Where one is shorter than M, the rest
        of its row is the mask token, which no model accepts."""
        canvas = self.canvas
        self.drafted, self.lengths, self.proposal = token.shape[1], lengths, proposal
        slots = canvas.block_slots()[:, : self.drafted]
        canvas.x.scatter_(1, slots, torch.where(canvas.finished[:, None], canvas.x.gather(1, slots), token))

    def logits(self, hidden: Float[Tensor, "N T D"]) -> Float[Tensor, "N T V"]:
        return self.both.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    def read(self, windows: int) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N W K D"]]:
        """One forward of [tokens that are not in the cache and the draft ; windows]: the hidden states that score the
        draft and the token after it, and those of the windows."""
        canvas = self.canvas
        end, last = canvas.start + self.lengths, canvas.start + self.drafted
        width = int(torch.where(canvas.finished, 0, last - canvas.written).max())
        slots = last[:, None] + torch.arange(-width, 0, device=end.device)  # the longest draft ends with the row
        slots = torch.where((slots >= canvas.written[:, None]) & (slots < end[:, None]), slots, SCRATCH)
        masks = self.window_slot + torch.arange(windows * self.size, device=end.device)
        slots = torch.cat([slots, masks.expand(len(canvas), -1)], 1)
        slots = torch.where(canvas.finished[:, None], SCRATCH, slots)
        columns = self.columns(end, windows)
        rows = columns.map(lambda t: t.gather(1, slots + 1))
        everything = torch.arange(slots.numel(), device=end.device)
        plan = ForwardPlan(slots, rows, columns, everything, positions=rows.position)
        hidden = plan.hidden(self.both, canvas).unflatten(0, slots.shape)
        windows_of = hidden[:, width:].unflatten(1, (windows, self.size))
        return hidden[:, width - self.drafted - 1 : width], windows_of

    def columns(self, end: Int[Tensor, " N"], windows: int) -> Rows:
        """The slots as columns of the attention matrix, scratch first: tokens up to `end`, then the windows, window i
        behind i tokens of the draft."""
        canvas, slots = self.canvas, torch.arange(SCRATCH, self.canvas.num_slots, device=end.device)
        mask = slots - self.window_slot
        clean = (mask < 0).expand(len(canvas), -1)
        view = canvas.start[:, None] + mask.clamp_min(0) // self.size
        used = torch.where(clean, (slots >= 0) & (slots < end[:, None]), mask < windows * self.size)
        position = torch.where(clean, slots, view + mask % self.size)
        return Rows(clean, torch.where(used, 0, -1), position, view)

    def verify(self, logits: Float[Tensor, "N T V"]) -> Int[Tensor, " N"]:
        """Commit what AR accepts of the draft, and the token that it writes next, and move on. Returns how many were
        accepted."""
        canvas, drafted = self.canvas, self.drafted
        draft = canvas.x.gather(1, canvas.block_slots())[:, :drafted]
        accepted, token = accept(self.rule, draft, self.proposal, logits, self.request.generator)
        made = torch.nn.functional.pad(draft, (0, 1)).scatter(1, accepted[:, None], token[:, None])
        confidence = self.rule.confidence(logits, made)
        rest = 0, self.size - drafted - 1
        made, confidence = (torch.nn.functional.pad(t, rest) for t in (made, confidence))
        kept = torch.arange(self.size, device=made.device) <= accepted[:, None]
        write(canvas, kept & ~canvas.finished[:, None], made, confidence)
        canvas.written.copy_(torch.where(canvas.finished, canvas.written, canvas.start + accepted))
        advance(canvas, self.request.stop)
        return accepted


def accept(
    rule: CommitRule,
    draft: Int[Tensor, "N M"],
    proposal: Float[Tensor, "N M V"] | None,
    logits: Float[Tensor, "N T V"],
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """How many tokens of a draft, from the left, AR accepts, and the token that it writes after them. `logits` are AR's
    of the draft and of the token after it (T = M + 1), `proposal` the distributions the draft was drawn from.

    Greedy: what AR would have written. Sampling: a token is accepted with probability min(1, p/q), and the one in place
    of the first refused is drawn from max(p - q, 0); what is written is then distributed as p, whatever q.
    """
    count = draft.shape[1]
    if rule.temperature == 0:
        best = logits.argmax(-1)
        accepted = (draft == best[:, :count]).cumprod(1).sum(1)
        return accepted, best.gather(1, accepted[:, None])[:, 0]
    target = rule.probabilities(logits)
    rest, accepted = target, torch.zeros_like(draft[:, :0].sum(1))
    if count:
        p, q = (x.gather(-1, draft[..., None])[..., 0] for x in (target[:, :count], proposal))
        chance = torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        accepted = (chance * q < p).cumprod(1).sum(1)
        rest = torch.cat([(target[:, :count] - proposal).clamp_min(0), target[:, count:]], 1)
    chosen = torch.arange(len(draft), device=draft.device), accepted
    # Where p = q but for rounding, nothing is left of the difference.
    weights = torch.where(rest[chosen].sum(-1, keepdim=True) > 0, rest[chosen], target[chosen])
    return accepted, torch.multinomial(weights, 1, generator=generator)[:, 0]
