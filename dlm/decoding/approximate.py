"""Fast-dLLM's approximate caches for bidirectional attention (arXiv 2505.22618, §3.2; Efficient-DLM, Figure 10).

Under bidirectional attention every key and value changes with every committed token, so nothing can be cached exactly.
These decoders read the whole canvas when a block begins. The forwards after that read only the block (dual cache), or
the block and everything after it (prefix cache). Positions that a forward does not read keep the keys and values of the
last full forward. Every forward denoises and counts, however much it reads.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import SCRATCH, Canvas
from dlm.decoding.engine.loop import Batches
from dlm.decoding.engine.plan import ForwardPlan, flat_index, plan_forward
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import advance, commit
from dlm.decoding.threshold import AboveThreshold
from dlm.model.denoiser import Denoiser


class Refreshed(Batches):
    """Reads the whole canvas at the start of each block, and again `refresh` forwards after the last full read (1:
    always, which is exact; None: never). The other forwards read the block and, with `reads_suffix`, everything after
    it."""

    def __init__(self, reads_suffix: bool, refresh: int | None):
        if refresh is not None and refresh < 1:
            raise ValueError(f"decoding.refresh {refresh} must be at least 1, or null for only the start of a block")
        self.reads_suffix, self.refresh = reads_suffix, refresh

    def takes(self, pattern):
        if not pattern.cacheable and pattern.whole_canvas:
            return None
        if not pattern.cacheable:
            return "it reads the whole canvas, and this pattern's ends with the block: set attention.canvas=whole"
        return (
            f"an approximate cache is for attention that cannot be cached, and {type(pattern).__name__} can: choose "
            "decoding=threshold"
        )

    def begin(self, denoiser, rule, canvas, request):
        age = torch.zeros_like(canvas.start)  # forwards since the whole canvas was read; 0: the next one reads it
        return partial(self.step, denoiser, rule, canvas, request, age)

    def step(
        self, denoiser: Denoiser, rule: CommitRule, canvas: Canvas, request: Request, age: Int[Tensor, " B"]
    ) -> None:
        """One forward, and the commit of its predictions. Updates `age` in place."""
        block = canvas.start.clone()
        logits = plan_block(denoiser, canvas, age == 0, self.reads_suffix).logits(denoiser, canvas)
        token, confidence = rule.sample(logits.unflatten(0, (len(canvas), -1)), request.generator)
        commit(canvas, rule, token, confidence, denoiser.token_shift)
        advance(canvas)
        older = age + 1 if self.refresh is None else (age + 1) % self.refresh
        age.copy_(torch.where(canvas.start == block, older, 0))


def plan_block(denoiser: Denoiser, canvas: Canvas, full: Bool[Tensor, " B"], reads_suffix: bool) -> ForwardPlan:
    """The plan of a forward that scores every position of each current block. It reads the whole canvas of a sequence
    if `full`, else the block (with `reads_suffix` also everything after it). With the shift it also reads the position
    before the block, which scores its first token."""
    size, shift = canvas.block_size, int(denoiser.token_shift)
    first = torch.where(full, 0, (canvas.start - shift).clamp_min(0))
    last = torch.where(full, canvas.length, canvas.length if reads_suffix else canvas.start + size)
    last = torch.where(canvas.finished, first, last)
    slots = first[:, None] + torch.arange(int((last - first).max()), device=first.device)
    slots = torch.where(slots < last[:, None], slots, SCRATCH)
    row = (canvas.start - first - shift)[:, None] + torch.arange(size, device=first.device)
    row = row.clamp(0, slots.shape[1] - 1)  # position 0 is never scored with the shift; finished sequences read nothing
    scored = flat_index(row, slots).flatten()
    return plan_forward(denoiser.pattern, canvas, slots, canvas.num_slots, canvas.length, scored)


class PrefixCache(Decoder):
    """Commits by threshold. The positions before the block are not read again."""

    def __init__(self, threshold: float, refresh: int | None = None, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Refreshed(True, refresh), AboveThreshold(threshold, temperature, top_p))


class DualCache(Decoder):
    """Commits by threshold. Neither the positions before the block nor those after it are read again."""

    def __init__(self, threshold: float, refresh: int | None = None, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Refreshed(False, refresh), AboveThreshold(threshold, temperature, top_p))
