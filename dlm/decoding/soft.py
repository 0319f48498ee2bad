"""DMax's soft parallel decoding (arXiv 2604.08302): decoded tokens stay open to revision until their block settles.

Tokens are decoded from left to right, and every forward predicts the decoded tokens of the block again. The network
reads these as soft embeddings, between that of the token and that of [MASK] in proportion to the confidence, so that
later predictions do not treat guesses as facts. The block is finished when it no longer changes or is confident
throughout. The first forward of the next block writes its tokens, with their plain embeddings, into the cache.

It is for models that were trained to correct their own predictions; revisions mislead others.

    B sequences        K positions of a block        R rows that a forward reads of each sequence
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.blocks import ActiveBlocks, BlocksCanvas, predict
from dlm.decoding.engine.commit import write
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import advance
from dlm.model.denoiser import Denoiser


class SoftCanvas(BlocksCanvas):
    """One active block per sequence; `age` [B] counts its forwards."""

    STATE = (*BlocksCanvas.STATE, "age")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.age = torch.zeros_like(self.start)


class SurePrefix(CommitRule):
    """Commits the longest prefix of the masked positions whose confidence is at least `threshold` (τ_dec), and always
    the leftmost one. Above 1 it is one token per forward."""

    def __init__(self, threshold: float):
        super().__init__()
        if threshold < 0:
            raise ValueError(f"decoding.threshold {threshold} must be >= 0: it is compared with probabilities")
        self.threshold = threshold

    def select(self, confidence: Float[Tensor, "B K"], rank: Float[Tensor, "B K"] | None) -> Bool[Tensor, "B K"]:
        masked = confidence >= 0
        unsure = masked & (confidence < self.threshold)
        leftmost = masked & (masked.cumsum(1) == 1)
        return masked & (unsure.cumsum(1) == 0) | leftmost


class Settling(ActiveBlocks):
    """A block is finished when none of its tokens is masked and either all have a confidence of at least `accept`
    (τ_acc) or none has changed. It is finished at the latest after `max_forwards` (None: as many as it has positions);
    positions that are still masked then take their last prediction. Tokens after an EOS, or beyond `max_new_tokens`, do
    not count.

    Without `revise`, a decoded token stays, and a block is finished when it is full. With `hard`, decoded tokens are
    read with their plain embeddings."""

    canvas = SoftCanvas

    def __init__(self, accept: float, revise: bool, hard: bool, max_forwards: int | None):
        if accept < 0:
            raise ValueError(f"decoding.accept {accept} must be >= 0: it is compared with probabilities")
        if max_forwards is not None and max_forwards < 1:
            raise ValueError(f"decoding.max_forwards {max_forwards} must be at least 1, or null for the block size")
        self.accept, self.revise, self.hard, self.max_forwards = accept, revise, hard, max_forwards

    def begin(self, denoiser, rule, canvas, request):
        return partial(self.step, denoiser, rule, canvas, request)

    def step(self, denoiser: Denoiser, rule: CommitRule, canvas: SoftCanvas, request: Request) -> None:
        """Run one forward, decode and revise tokens, and go on to the next block if this one has settled."""
        canvas.end = canvas.start + canvas.block_size
        slots = canvas.block_slots()
        new = slots >= canvas.prompt_length[:, None]
        predict(denoiser, canvas, rule, None, new, None if self.hard else partial(soft_embeddings, denoiser))
        canvas.age += 1
        last = canvas.age == (self.max_forwards or canvas.block_size)
        changed = self.write(rule, canvas, slots, new, last)
        done = last | self.settled(canvas, slots, changed, new & in_answer(canvas, slots))
        advance(canvas, done)
        canvas.age = torch.where(done, 0, canvas.age)

    def write(
        self,
        rule: CommitRule,
        canvas: SoftCanvas,
        slots: Int[Tensor, "B K"],
        new: Bool[Tensor, "B K"],
        last: Bool[Tensor, " B"],
    ) -> Bool[Tensor, "B K"]:
        """Decode and revise tokens; in the `last` forward of a block, decode all that are masked. Returns which tokens
        have changed (from [MASK] to a token is a change)."""
        states = (canvas.token, canvas.certainty, canvas.x, canvas.step, canvas.masked)
        token, confidence, before, step, masked = (state.gather(1, slots) for state in states)
        decoded = rule.select(confidence.masked_fill(~masked, -1.0), confidence) | (masked & last[:, None])
        updated = decoded | (new & ~masked & self.revise)
        changed = updated & (token != before)
        write(canvas, updated, token, confidence)
        canvas.step.scatter_(1, slots, torch.where(changed, canvas.nfe[:, None], step))
        return changed

    def settled(
        self,
        canvas: SoftCanvas,
        slots: Int[Tensor, "B K"],
        changed: Bool[Tensor, "B K"],
        needed: Bool[Tensor, "B K"],
    ) -> Bool[Tensor, " B"]:
        """Whether each block is finished; only the `needed` positions count. Unlike DMax's rule, this one waits for
        masked positions, which otherwise remain if `threshold` exceeds `accept`."""
        full = ~(canvas.masked.gather(1, slots) & needed).any(1)
        if not self.revise:
            return full
        sure = (canvas.certainty.gather(1, slots) >= self.accept) | ~needed
        return full & (sure.all(1) | ~(changed & needed).any(1))


class Soft(Decoder):
    """Decodes one block after another, from left to right, each revised until it settles. Greedy: a sampled block would
    not settle."""

    def __init__(
        self,
        threshold: float,
        accept: float,
        revise: bool = True,
        hard: bool = False,
        max_forwards: int | None = None,
    ):
        super().__init__(Settling(accept, revise, hard, max_forwards), SurePrefix(threshold))


def in_answer(canvas: SoftCanvas, slots: Int[Tensor, "B K"]) -> Bool[Tensor, "B K"]:
    """Which slots of the block may belong to the answer: those up to its first EOS and within `max_new_tokens`."""
    is_eos = canvas.is_eos(canvas.x.gather(1, slots)) & (slots >= canvas.prompt_length[:, None])
    after_eos = (is_eos.cumsum(1) - is_eos.int()) > 0
    return ~after_eos & (slots < (canvas.prompt_length + canvas.limit)[:, None])


def soft_embeddings(denoiser: Denoiser, canvas: SoftCanvas, slots: Int[Tensor, "B R"]) -> Float[Tensor, "B R D"]:
    """The input embeddings at these slots: soft embeddings for the decoded tokens of the current block, plain ones for
    all others."""
    embedding = denoiser.model.get_input_embeddings()
    hard = embedding(canvas.x.gather(1, slots))
    mask = embedding(torch.full_like(slots[0, :1], denoiser.mask_id))[0]
    first = torch.maximum(canvas.start, canvas.prompt_length)
    decoded = (slots >= first[:, None]) & ~canvas.masked.gather(1, slots)
    wide = torch.promote_types(hard.dtype, torch.float32)
    soft = soft_embedding(hard.to(wide), mask.to(wide), canvas.confidence.gather(1, slots))
    return torch.where(decoded[..., None], soft.to(hard.dtype), hard)


def soft_embedding(
    token: Float[Tensor, "*shape D"], mask: Float[Tensor, " D"], confidence: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape D"]:
    """The mixture of a token's embedding, with weight `confidence`, and that of the mask token. Its norm is the mixture
    of their norms; that of the plain mixture would be smaller."""
    share = confidence[..., None]
    blend = share * token + (1 - share) * mask
    norm = share * token.norm(dim=-1, keepdim=True) + (1 - share) * mask.norm()
    return blend * (norm / blend.norm(dim=-1, keepdim=True).clamp_min(1e-6))
