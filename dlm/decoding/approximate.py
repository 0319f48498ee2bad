"""Fast-dLLM's approximate caches for bidirectional attention (arXiv 2505.22618, §3.2; Efficient-DLM, Figure 10).

Under bidirectional attention every key and value changes with every token that is committed, so nothing can be cached
exactly. Here the whole canvas is read when a block begins, and the forwards after it read only a part of it again: the
block alone (dual cache), or the block and all that follows (prefix cache). What they do not read keeps the keys and
values of the last full forward. Every forward denoises, and every one counts, whatever it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.canvas import SCRATCH, Canvas, Generation
from dlm.decoding.engine import in_batches
from dlm.decoding.step import Stop, advance, commit
from dlm.decoding.threshold import Threshold
from dlm.model.denoiser import Denoiser
from dlm.types import Rows


class ApproximateCache(Threshold):
    """Commits by threshold. The whole canvas is read again `refresh` forwards after it was last read (1: always, which
    is exact), and at the start of each block."""

    reads_suffix: bool

    def __init__(self, threshold: float, refresh: int | None = None, **kwargs):
        super().__init__(threshold, **kwargs)
        if refresh is not None and refresh < 1:
            raise ValueError(f"decoding.refresh {refresh} must be at least 1, or null for only the start of a block")
        if self.sliding:
            raise ValueError("decoding.sliding=true needs an exact cache, and this one is approximate: set it to false")
        self.refresh = refresh

    def generate(
        self,
        denoiser: Denoiser,
        prompts: list[list[int]],
        max_new_tokens: int,
        eos_id: int | list[int] | None,
        generator: torch.Generator | None = None,
        stop: Stop | None = None,
        **loop,
    ) -> list[Generation]:
        """As `engine.generate`. Raises `ValueError` for a pattern that has an exact cache."""
        if denoiser.pattern.cacheable:
            raise ValueError(
                f"an approximate cache is for attention that cannot be cached, and {type(denoiser.pattern).__name__} "
                "can: choose decoding=threshold"
            )

        def begin(canvas: Canvas, eos_ids: Tensor) -> Callable[[], None]:
            age = torch.zeros_like(canvas.start)  # forwards since the whole canvas was read; 0: it must be read now
            return partial(self.step, denoiser, canvas, age, eos_ids, generator, stop)

        return in_batches(begin, denoiser, prompts, max_new_tokens, eos_id, **loop)

    def step(
        self,
        denoiser: Denoiser,
        canvas: Canvas,
        age: Int[Tensor, " N"],
        eos_ids: Int[Tensor, " E"],
        generator: torch.Generator | None,
        stop: Stop | None,
    ) -> None:
        """One forward, what it commits, and the new `age` (in place)."""
        block = canvas.start.clone()
        logits = forward(denoiser, canvas, age == 0, self.reads_suffix)
        token, confidence = self.sample(logits, generator)
        canvas.nfe += ~canvas.finished
        commit(canvas, self, token, confidence, denoiser.token_shift, denoiser.mask_id, eos_ids)
        advance(canvas, eos_ids, stop)
        older = age + 1 if self.refresh is None else (age + 1) % self.refresh
        age.copy_(torch.where(canvas.start == block, older, 0))


class PrefixCache(ApproximateCache):
    """What lies before the block is not read again."""

    reads_suffix = True


class DualCache(ApproximateCache):
    """Neither what lies before the block nor what follows it is read again."""

    reads_suffix = False


def forward(denoiser: Denoiser, canvas: Canvas, full: Bool[Tensor, " N"], reads_suffix: bool) -> Float[Tensor, "N K V"]:
    """The logits of every position of each sequence's block, from a forward of the whole canvas where `full`, else of
    the block (and what follows it), with the position before it where that scores its first token."""
    cache, size, shift = canvas.cache, canvas.block_size, int(denoiser.token_shift)
    first = torch.where(full, 0, (canvas.start - shift).clamp_min(0))
    last = torch.where(full, canvas.length, canvas.length if reads_suffix else canvas.start + size)
    last = torch.where(canvas.finished, first, last)
    slots = first[:, None] + torch.arange(int((last - first).max()), device=first.device)
    slots = torch.where(slots < last[:, None], slots, SCRATCH)
    cache.slots, cache.read = slots, canvas.num_slots
    canvas.rows += (slots != SCRATCH).sum(1)
    columns: Int[Tensor, "N S"] = torch.arange(SCRATCH, cache.read, device=first.device).expand(len(canvas), -1)
    used = (columns < canvas.length[:, None]) & (columns != SCRATCH)
    q = Rows(torch.zeros_like(slots, dtype=torch.bool), torch.where(slots == SCRATCH, -1, 0), slots)
    k = Rows(torch.zeros_like(used), torch.where(used, 0, -1), columns)
    row = (canvas.start - first - shift)[:, None] + torch.arange(size, device=first.device)
    row = row.clamp(0, slots.shape[1] - 1)  # position 0 is never scored with the shift; finished sequences read nothing
    scored = row + torch.arange(len(canvas), device=first.device)[:, None] * slots.shape[1]
    filled = slots.clamp_min(0)  # scratch rows read anything
    masks = denoiser.masks(q, k)
    logits = denoiser.score(
        scored.flatten(), canvas.x.gather(1, filled), filled, masks, past_key_values=cache, use_cache=True
    )
    return logits.view(*scored.shape, -1)
