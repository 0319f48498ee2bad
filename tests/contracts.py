"""What every attention pattern must do, as functions of a denoiser that has it: the tests ask them of all options by
glob, and of patterns that are made up to break them."""

from dataclasses import replace

import torch
from common import MASK_ID, random_batch
from transformers import DynamicCache

from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.trim import trim
from dlm.types import Batch, Noised, Rows, generator

LENGTH = 48


def prompts_first(documents: list[int]) -> Batch:
    """Documents whose first half is a prompt, and whose last quarter is fill."""
    batch = random_batch(3, LENGTH, documents)
    half, fill = (torch.cat([torch.arange(n) >= part * n // 4 for n in documents]) for part in (2, 3))
    return replace(batch, maskable=batch.maskable & half, fill=fill.expand_as(batch.maskable))


def gradients(scorer, inputs, scored):
    scorer.zero_grad()
    loss = Nelbo()(scorer(inputs), scored, 100).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}


def trimmed_is_whole(scorer, documents: list[int], seed: int = 1):
    """A forward of the needed rows alone has the loss and all gradients of the whole."""
    batch = scorer.scorable(prompts_first(documents))
    noised = Uniform()(batch, scorer.pattern.units(batch), MASK_ID, generator(seed))
    inputs, scored = scorer.inputs(batch, noised)
    trimmed = trim(inputs)
    (loss, grads), (whole_loss, whole_grads) = (gradients(scorer, i, scored) for i in (trimmed, inputs))
    torch.testing.assert_close(loss, whole_loss, rtol=1e-6, atol=0)
    assert grads.keys() == whole_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole_grads[name], rtol=1e-6, atol=1e-8)
    return trimmed, inputs


def some_blocks(length: int, size: int) -> list[int]:
    """Where the first three blocks and the last one begin."""
    starts = range(0, length, size)
    return sorted({*starts[:3], starts[-1]})


def other_tokens(tokens):
    return (tokens + 7) % 50 + 2


@torch.no_grad()
def nothing_leaks(scorer, length: int = 16):
    """In the first blocks and the last, what scores a block's tokens depends neither on them nor, where blocks are
    cached, on later blocks; it does depend on what stands before them."""
    batch, size = random_batch(1, length), scorer.pattern.block_size
    for begin in some_blocks(length, size):
        masked = (batch.position >= begin) & (batch.position < begin + size)
        masked &= scorer.scorable(batch).maskable
        if not masked.any():  # position 0 with the shift
            continue
        hidden = masked | (batch.position >= begin + size) & scorer.pattern.cacheable

        def logits(x0, masked=masked):
            noised = Noised(torch.where(masked, scorer.mask_id, x0), masked, masked.float())
            inputs, _ = scorer.inputs(Batch(x0, batch.maskable, batch.document, batch.position), noised)
            return scorer(inputs)

        before = logits(batch.x0)
        changed = torch.where(hidden, other_tokens(batch.x0), batch.x0)
        assert torch.equal(logits(changed), before), f"block {begin // size} depends on what is hidden from it"
        if begin > 0:  # the probe itself can fail
            changed[0, begin - 1] = other_tokens(changed[0, begin - 1])
            assert not torch.equal(logits(changed), before)


@torch.no_grad()
def training_is_decoding(scorer, length: int = 16):
    """In the first blocks and the last, with some of their tokens hidden, among them the first, the logits of training
    are those of decoding, which has the blocks before in a cache. In a noisy stream beside a clean one, tokens of the
    blocks before are hidden as well."""
    size, both = scorer.pattern.block_size, scorer.pattern.noisy_stream and scorer.pattern.clean_stream
    for start in some_blocks(length, size):
        batch = random_batch(1, start + size)
        masked = (torch.rand(1, start + size, generator=generator(3, start)) < 0.6) & (batch.position >= start)
        masked = (masked | (batch.position == start)) & scorer.scorable(batch).maskable
        xt = torch.where(masked, MASK_ID, batch.x0)
        before = (torch.rand(masked.shape, generator=generator(4, start)) < 0.5) & (batch.position < start) & both
        noisy = torch.where(before, MASK_ID, xt)
        inputs, scored = scorer.inputs(batch, Noised(noisy, masked, masked.float()))
        decoded = torch.full((start + size, 61), torch.nan, dtype=scorer.model.dtype)
        decoded[start:] = block_in_a_cache(scorer, xt, start)
        torch.testing.assert_close(scorer(inputs).double(), decoded[scored.index].double(), rtol=1e-6, atol=1e-6)


def block_in_a_cache(scorer, xt, start: int):
    """The logits that score the positions from `start` on, after a forward of those before it."""
    pattern, position = scorer.pattern, torch.arange(xt.shape[1])
    finished = pattern.clean_stream or not pattern.noisy_stream
    clean = torch.where(position < start, finished, not pattern.noisy_stream)
    rows = Rows(clean[None], torch.zeros_like(position)[None], position[None])
    cache, made = DynamicCache(), []
    for part in filter(lambda part: part.stop > part.start, (slice(0, start), slice(start, len(position)))):
        masks = scorer.masks(rows[:, part], rows[:, : part.stop])
        own = torch.arange(part.stop - part.start)
        made.append(scorer.score(own, xt[:, part], position[None, part], masks, past_key_values=cache, use_cache=True))
    logits = torch.cat(made)
    return torch.cat([logits[:1], logits])[start:-1] if scorer.token_shift else logits[start:]
