"""DMax's soft parallel decoding (arXiv 2604.08302): decoded tokens stay open to revision until their block settles.

Tokens are decoded from left to right, and every forward predicts those again that the block has already. They are read
as soft embeddings, between that of the token and that of [MASK] by how sure the model is of it, so that later
predictions do not rest on guesses as if they were facts. The block is finished when it no longer changes or is sure of
itself; its tokens go into the cache as such, with the first forward of the next block.

It is for models that were trained to correct their own predictions; others are misled by what they revise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.blocks import BlocksCanvas, check_blocks, predict
from dlm.decoding.canvas import Generation
from dlm.decoding.commit import write
from dlm.decoding.engine import in_batches
from dlm.decoding.step import Stop, advance
from dlm.model.denoiser import Denoiser


class SoftCanvas(BlocksCanvas):
    """One active block per sequence; `age` counts its forwards."""

    STATE = (*BlocksCanvas.STATE, "age")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.age = torch.zeros_like(self.start)


class Soft(Decoder):
    """Decodes the longest prefix of the masked positions whose confidence is at least `threshold`, at least the
    leftmost (τ_dec; more than 1: one token per forward). A block is finished when no token of it is masked and either
    all have a confidence of at least `accept` (τ_acc) or nothing has changed; at the latest after `max_forwards` (None:
    as many as it has positions), when what is still masked is decoded as predicted. The tokens behind an EOS, or behind
    those that are asked for, are not waited for.

    Without `revise` a decoded token stays and a block is finished when it is full. With `hard`, decoded tokens are read
    as such. Greedy: a sampled block would not settle."""

    def __init__(
        self,
        threshold: float,
        accept: float,
        revise: bool = True,
        hard: bool = False,
        max_forwards: int | None = None,
    ):
        super().__init__()
        for name, value in (("threshold", threshold), ("accept", accept)):
            if value < 0:
                raise ValueError(f"decoding.{name} {value} must be >= 0: it is compared with probabilities")
        if max_forwards is not None and max_forwards < 1:
            raise ValueError(f"decoding.max_forwards {max_forwards} must be at least 1, or null for the block size")
        self.threshold, self.accept, self.revise, self.hard = threshold, accept, revise, hard
        self.max_forwards = max_forwards

    def select(self, confidence, rank):
        masked = confidence >= 0
        unsure = masked & (confidence < self.threshold)
        leftmost = masked & (masked.cumsum(1) == 1)
        return masked & (unsure.cumsum(1) == 0) | leftmost

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
        """As `engine.generate`; the `step` of a token is the forward that changed it last. Raises `ValueError` also for
        a pattern that has no cacheable noisy blocks."""
        check_blocks(denoiser.pattern, "soft")

        def begin(canvas: SoftCanvas, eos_ids: Tensor) -> Callable[[], None]:
            return partial(self.step, denoiser, stop, canvas, eos_ids)

        loop |= {"kind": SoftCanvas, "rows_leave": True}
        return in_batches(begin, denoiser, prompts, max_new_tokens, eos_id, **loop)

    def step(self, denoiser: Denoiser, stop: Stop | None, canvas: SoftCanvas, eos_ids: Int[Tensor, " E"]) -> None:
        """One forward, what it decodes and revises, and on to the next block where this one has settled."""
        canvas.end = canvas.start + canvas.block_size
        slots = canvas.block_slots()
        new = slots >= canvas.prompt_length[:, None]
        predict(denoiser, canvas, self, None, new, None if self.hard else partial(soft_embeddings, denoiser))
        canvas.age += 1
        last = canvas.age == (self.max_forwards or canvas.block_size)
        changed = self.write(canvas, slots, new, last)
        done = last | self.settled(canvas, slots, changed, new & waited_for(canvas, slots, eos_ids))
        canvas.finished = ~done  # so that the others stay where they are
        advance(canvas, eos_ids, stop)
        canvas.finished &= done
        canvas.age = torch.where(done, 0, canvas.age)

    def write(
        self, canvas: SoftCanvas, slots: Int[Tensor, "N K"], new: Bool[Tensor, "N K"], last: Bool[Tensor, " N"]
    ) -> Bool[Tensor, "N K"]:
        """Decode and revise; which tokens are others than before (from [MASK] to a token is a change)."""
        states = (canvas.token, canvas.certainty, canvas.x, canvas.step, canvas.masked)
        token, confidence, before, step, masked = (state.gather(1, slots) for state in states)
        decoded = self.select(confidence.masked_fill(~masked, -1.0), confidence) | (masked & last[:, None])
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


def waited_for(canvas: SoftCanvas, slots: Int[Tensor, "N K"], eos_ids: Int[Tensor, " E"]) -> Bool[Tensor, "N K"]:
    """The slots of the block that the answer may need: up to its first EOS, and to the tokens that are asked for."""
    is_eos = torch.isin(canvas.x.gather(1, slots), eos_ids) & (slots >= canvas.prompt_length[:, None])
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
