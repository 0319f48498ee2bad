"""Speculative decoding: one autoregressive forward verifies drafted tokens and keeps the right ones.

The result is exactly that of AR decoding with the same weights, in fewer forwards: the same tokens if greedy, the same
distribution if sampling (the rejection rule of arXiv 2211.17192). The quality of a draft only changes the number of
tokens per forward. The decoders `self_speculative` and `lookup` make the drafts.

    B sequences        M tokens of the longest draft        T tokens that AR scores, M + 1        V vocabulary
    W windows of K positions each                           D width of the hidden states
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
    """Clean rows are causal. A noisy row belongs to the window that begins at position `view`. It sees the clean tokens
    before `view` and its own window as far as the pattern `draft` allows, on a grid with a block at `view`."""

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
        by_draft = self.draft.allowed(*on_grid) & (~k.clean | (k.position < q.view))
        return torch.where(q.clean, k.clean & (k.position <= q.position), by_draft)


class Verifier(Denoiser):
    """A model in its causal mode, with windows under the pattern `draft`. `draft_shift` is the token shift of the dLM:
    windows are scored with it, all other rows with the shift of AR."""

    def __init__(self, denoiser: Denoiser, draft: AttentionPattern):
        pattern, types = Speculation(draft), denoiser.layer_types
        super().__init__(denoiser.model, pattern, denoiser.mask_id, True, types, denoiser.span_ids)
        self.draft_shift = denoiser.token_shift


class Speculative(Batches):
    """Verifies drafts and writes new ones. The current block slides; it has room for a draft and the token after it."""

    sliding = True

    @abstractmethod
    def draft(self, pattern: AttentionPattern) -> AttentionPattern:
        """The pattern of the windows. Its block size is that of a draft and the token after it."""

    @abstractmethod
    def cycle(self, denoiser: Verifier, rule: CommitRule, canvas: Canvas, request: Request) -> Cycle:
        """The object that makes the forwards of a canvas."""

    def mode(self, denoiser):
        return Verifier(denoiser, self.draft(denoiser.pattern))

    def begin(self, denoiser, rule, canvas, request):
        return self.cycle(denoiser, rule, canvas, request).forward


class Cycle(ABC):
    """Makes the forwards of a canvas whose last `spare` slots are for windows and hold no tokens.

    Each sequence has a draft of `lengths` tokens, the longest of `drafted`; if they are sampled, `proposal` are the
    distributions that they were drawn from. A draft lies in the slots from `canvas.start` on, still marked as masked.
    The first `canvas.written` tokens are in the cache and final."""

    def __init__(self, verifier: Verifier, rule: CommitRule, canvas: Canvas, request: Request, spare: int = 0):
        self.verifier, self.rule, self.canvas, self.request = verifier, rule, canvas, request
        self.size, self.window_slot = canvas.block_size, canvas.num_slots - spare
        self.drafted, self.lengths = 0, torch.zeros_like(canvas.start)
        self.proposal: Float[Tensor, "B drafted V"] | None = None

    @abstractmethod
    def forward(self) -> None:
        """Run one forward: verify the draft, and make the next one."""

    def propose(
        self,
        token: Int[Tensor, "B M"],
        lengths: Int[Tensor, " B"],
        proposal: Float[Tensor, "B M V"] | None,
    ) -> None:
        """Put a draft after the committed tokens of every unfinished sequence. `token` is padded with the mask token,
        which no model accepts."""
        canvas = self.canvas
        self.drafted, self.lengths, self.proposal = token.shape[1], lengths, proposal
        slots = canvas.block_slots()[:, : self.drafted]
        canvas.x.scatter_(1, slots, torch.where(canvas.finished[:, None], canvas.x.gather(1, slots), token))

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        return self.verifier.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    def read(self, windows: int) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B W K D"]]:
        """Run one forward of [pending tokens ; draft ; windows]. Returns the hidden states that score the draft and the
        token after it, and those of the windows."""
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
        hidden = plan.hidden(self.verifier, canvas).unflatten(0, slots.shape)
        window_states = hidden[:, width:].unflatten(1, (windows, self.size))
        return hidden[:, width - self.drafted - 1 : width], window_states

    def columns(self, end: Int[Tensor, " B"], windows: int) -> Rows:
        """The slots as columns of the attention matrix, scratch first: the tokens up to `end`, then the windows. Window
        i continues the text after i tokens of the draft."""
        canvas, slots = self.canvas, torch.arange(SCRATCH, self.canvas.num_slots, device=end.device)
        mask = slots - self.window_slot
        clean = (mask < 0).expand(len(canvas), -1)
        view = canvas.start[:, None] + mask.clamp_min(0) // self.size
        used = torch.where(clean, (slots >= 0) & (slots < end[:, None]), mask < windows * self.size)
        position = torch.where(clean, slots, view + mask % self.size)
        return Rows(clean, torch.where(used, 0, -1), position, view, canvas.spans(slots.expand(len(canvas), -1)))

    def verify(self, logits: Float[Tensor, "B T V"]) -> Int[Tensor, " B"]:
        """Commit the tokens of the draft that AR accepts and the token that AR writes next, and advance. Returns the
        number of accepted tokens."""
        canvas, drafted = self.canvas, self.drafted
        draft = canvas.x.gather(1, canvas.block_slots())[:, :drafted]
        accepted, token = accept(self.rule, draft, self.proposal, logits, self.request.generator)
        tokens = torch.nn.functional.pad(draft, (0, 1)).scatter(1, accepted[:, None], token[:, None])
        confidence = self.rule.confidence(logits, tokens)
        to_block = 0, self.size - drafted - 1
        tokens, confidence = (torch.nn.functional.pad(t, to_block) for t in (tokens, confidence))
        keep = torch.arange(self.size, device=tokens.device) <= accepted[:, None]
        write(canvas, keep & ~canvas.finished[:, None], tokens, confidence)
        canvas.written.copy_(torch.where(canvas.finished, canvas.written, canvas.start + accepted))
        advance(canvas)
        return accepted


def accept(
    rule: CommitRule,
    draft: Int[Tensor, "B M"],
    proposal: Float[Tensor, "B M V"] | None,
    logits: Float[Tensor, "B T V"],
    generator: torch.Generator | None,
) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """The number of tokens of a draft, from the left, that AR accepts, and the token that it writes after them.
    `logits` are those of AR for the draft and the token after it (T = M + 1); `proposal` are the distributions that the
    draft was drawn from, None if greedy or if M = 0.

    Greedy: a token is accepted if AR would have written it. Sampling: it is accepted with probability min(1, p/q), and
    the replacement of the first rejected token is drawn from max(p - q, 0). The result is then distributed as p, for
    any q.
    """
    count = draft.shape[1]
    if rule.temperature == 0:
        best = logits.argmax(-1)
        accepted = (draft == best[:, :count]).cumprod(1).sum(1)
        return accepted, best.gather(1, accepted[:, None])[:, 0]
    target = rule.probabilities(logits)
    residual, accepted = target, torch.zeros_like(draft[:, :0].sum(1))
    if count:
        p, q = (x.gather(-1, draft[..., None])[..., 0] for x in (target[:, :count], proposal))
        chance = torch.rand(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        accepted = (chance * q < p).cumprod(1).sum(1)
        residual = torch.cat([(target[:, :count] - proposal).clamp_min(0), target[:, count:]], 1)
    next_token = torch.arange(len(draft), device=draft.device), accepted
    # If p = q up to rounding, the residual may be all zeros.
    weights = torch.where(residual[next_token].sum(-1, keepdim=True) > 0, residual[next_token], target[next_token])
    return accepted, torch.multinomial(weights, 1, generator=generator)[:, 0]
