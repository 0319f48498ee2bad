"""DMax's soft parallel decoding (arXiv 2604.08302): decoded tokens stay open to revision until their block settles.

Tokens are decoded from left to right, and every forward predicts those again that the block has already. They are read
as soft embeddings, between that of the token and that of [MASK] by how sure the model is of it, so that later
predictions do not rest on guesses as if they were facts. The block is finished when it no longer changes or is sure of
itself; its tokens go into the cache as such, with the first forward of the next block.

It is for models that were trained to correct their own predictions; others are misled by what they revise.
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
    """One active block per sequence; `age` counts its forwards."""

    STATE = (*BlocksCanvas.STATE, "age")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.age = torch.zeros_like(self.start)


class SurePrefix(CommitRule):
    """Commits the longest prefix of the masked positions whose confidence is at least `threshold`, at least the
    leftmost (τ_dec; more than 1: one token per forward)."""

    def __init__(self, threshold: float):
        super().__init__()
        if threshold < 0:
            raise ValueError(f"decoding.threshold {threshold} must be >= 0: it is compared with probabilities")
        self.threshold = threshold

    def select(self, confidence, rank):
        masked = confidence >= 0
        unsure = masked & (confidence < self.threshold)
        leftmost = masked & (masked.cumsum(1) == 1)
        return masked & (unsure.cumsum(1) == 0) | leftmost


class Settling(ActiveBlocks):
    """A block is finished when no token of it is masked and either all have a confidence of at least `accept` (τ_acc)
    or nothing has changed; at the latest after `max_forwards` (None: as many as it has positions), when what is still
    masked is decoded as predicted. The tokens behind an EOS, or behind those that are asked for, are not waited for.

    Without `revise` a decoded token stays and a block is finished when it is full. With `hard`, decoded tokens are read
    as such."""

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
        """One forward, what it decodes and revises, and on to the next block where this one has settled."""
        canvas.end = canvas.start + canvas.block_size
        slots = canvas.block_slots()
        new = slots >= canvas.prompt_length[:, None]
        predict(denoiser, canvas, rule, None, new, None if self.hard else partial(soft_embeddings, denoiser))
        canvas.age += 1
        last = canvas.age == (self.max_forwards or canvas.block_size)
        changed = self.write(rule, canvas, slots, new, last)
        done = last | self.settled(canvas, slots, changed, new & waited_for(canvas, slots))
        advance(canvas, request.stop, done)
        canvas.age = torch.where(done, 0, canvas.age)

    def write(
        self,
        rule: CommitRule,
        canvas: SoftCanvas,
        slots: Int[Tensor, "N K"],
        new: Bool[Tensor, "N K"],
        last: Bool[Tensor, " N"],
    ) -> Bool[Tensor, "N K"]:
        """Decode and revise; which tokens are others than before (from [MASK] to a token is a change)."""
        states = (canvas.token, canvas.certainty, canvas.x, canvas.step, canvas.masked)
        token, confidence, before, step, masked = (state.gather(1, slots) for state in states)
        decoded = rule.select(confidence.masked_fill(~masked, -1.0), confidence) | (masked & last[:, None])
        chosen = decoded | (new & ~masked & self.revise)
        changed = chosen & (token != before)
        write(canvas, chosen, token, confidence)
        canvas.step.scatter_(1, slots, torch.where(changed, canvas.nfe[:, None], step))
        return changed

    def settled(
        self,
        canvas: SoftCanvas,
        slots: Int[Tensor, "N K"],
        changed: Bool[Tensor, "N K"],
        waited: Bool[Tensor, "N K"],
    ) -> Bool[Tensor, " N"]:
        """Whether each block is finished. DMax's rule does not look for masks, which stay where `threshold` exceeds
        `accept`; this one does."""
        full = ~(canvas.masked.gather(1, slots) & waited).any(1)
        if not self.revise:
            return full
        sure = (canvas.certainty.gather(1, slots) >= self.accept) | ~waited
        return full & (sure.all(1) | ~(changed & waited).any(1))


class Soft(Decoder):
    """One block after another, from left to right, each revised until it settles. Greedy: a sampled block would not
    settle."""

    def __init__(
        self,
        threshold: float,
        accept: float,
        revise: bool = True,
        hard: bool = False,
        max_forwards: int | None = None,
    ):
        super().__init__(Settling(accept, revise, hard, max_forwards), SurePrefix(threshold))


def waited_for(canvas: SoftCanvas, slots: Int[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
    """The slots of the block that the answer may need: up to its first EOS, and to the tokens that are asked for."""
    is_eos = canvas.is_eos(canvas.x.gather(1, slots)) & (slots >= canvas.prompt_length[:, None])
    behind = (is_eos.cumsum(1) - is_eos.int()) > 0
    return ~behind & (slots < (canvas.prompt_length + canvas.max_new_tokens)[:, None])


def soft_embeddings(denoiser: Denoiser, canvas: SoftCanvas, slots: Int[Tensor, "N R"]) -> Float[Tensor, "N R D"]:
    """What the network reads at these slots: soft embeddings of what the current block has decoded, else those of the
    tokens."""
    embedding = denoiser.model.get_input_embeddings()
    hard = embedding(canvas.x.gather(1, slots))
    mask = embedding(torch.full_like(slots[0, :1], denoiser.mask_id))[0]
    first = torch.maximum(canvas.start, canvas.prompt_length)
    decoded = (slots >= first[:, None]) & ~canvas.masked.gather(1, slots)
    wide = torch.promote_types(hard.dtype, torch.float32)
    soft = soft_embedding(hard.to(wide), mask.to(wide), canvas.confidence.gather(1, slots))
    return torch.where(decoded[..., None], soft.to(hard.dtype), hard)


def soft_embedding(
    token: Float[Tensor, "*N D"], mask: Float[Tensor, " D"], confidence: Float[Tensor, "*N"]
) -> Float[Tensor, "*N D"]:
    """The embedding of a token that the model is sure of with `confidence`: that share of it and the rest of the mask
    token's, with a norm that is mixed likewise (the norm of a mixture is smaller)."""
    share = confidence[..., None]
    blend = share * token + (1 - share) * mask
    norm = share * token.norm(dim=-1, keepdim=True) + (1 - share) * mask.norm()
    return blend * (norm / blend.norm(dim=-1, keepdim=True).clamp_min(1e-6))
