"""What scores a token, computed the slow way: the plain Hugging Face forward under a mask written out pair by pair."""

import itertools

import torch
from common import MASK_ID
from torch.nn.functional import cross_entropy


def plain(model, ids, sees, **kwargs):
    """The model's own forward of one sequence, without the mask token among its predictions."""
    output = model(ids[None], attention_mask=sees[None, None], **kwargs)
    output.logits = output.logits[0].masked_fill(torch.arange(output.logits.shape[-1]) == MASK_ID, -torch.inf)
    return output


def pairs(length, sees):
    """The mask of a predicate on two positions."""
    return torch.tensor([[sees(i, j) for j in range(length)] for i in range(length)])


def causal(model, x0, shift=1):
    """[L V]: token i given the clean tokens before it; nothing for token 0."""
    logits = plain(model, x0, pairs(len(x0), lambda i, j: j <= i)).logits
    return torch.cat([torch.full_like(logits[:shift], torch.nan), logits[: len(x0) - shift]])


def one_stream(model, xt, shift, sees):
    """[L V]: token i from row i, or i - 1 with the shift, of the noisy sequence alone."""
    logits = plain(model, xt, pairs(len(xt), sees)).logits
    return torch.cat([torch.full_like(logits[:shift], torch.nan), logits[: len(xt) - shift]])


def bidirectional(model, xt, shift):
    return one_stream(model, xt, shift, lambda i, j: True)


def noisy_blocks(model, xt, shift, size):
    return one_stream(model, xt, shift, lambda i, j: j // size <= i // size)


def by_block(model, x0, xt, shift, size, clean_causal=False, noisy_causal=False, begin=0):
    """[L V]: for every block a forward of [the clean tokens before it ; the noisy block]. With the shift its first
    token is scored by the last clean one. A block begins at `begin`, and every `size` tokens before and behind it."""
    found, first = [], begin % size
    for start in [0] * (first > 0) + [*range(first, len(x0), size)]:
        end = min(first if start < first else start + size, len(x0))

        def sees(i, j, start=start):
            if i < start:
                return j < start and (j <= i if clean_causal else (j - begin) // size <= (i - begin) // size)
            return j <= i or not noisy_causal

        logits = plain(model, torch.cat([x0[:start], xt[start:end]]), pairs(end, sees)).logits
        unscored = [torch.full_like(logits[:1], torch.nan)] * (shift and not start)
        found += [*unscored, logits[max(start - shift, 0) : end - shift]]
    return torch.cat(found)


def nll(logits, x0, where):
    """[L]: the negative log-likelihood of every token of `where`, 0 elsewhere."""
    losses = torch.zeros(len(x0), dtype=logits.dtype)
    return losses.masked_scatter(where, cross_entropy(logits[where], x0[where], reduction="none"))


def cart(masked, p):
    """[L]: half the sum over visible tokens j of p (1 - p)^(|i - j| - 1), pair by pair."""
    weight = torch.zeros(len(masked), dtype=torch.float64)
    for i, j in itertools.permutations(range(len(masked)), 2):
        if masked[i] and not masked[j]:
            weight[i] += p * (1 - p) ** (abs(i - j) - 1) / 2
    return weight


def nlls_of(batch, noised, logits_of, where=None) -> torch.Tensor:
    """[B L]: the negative log-likelihoods of the masked tokens, `logits_of(x0, xt)` row by row."""
    where = noised.masked if where is None else where
    return torch.stack([nll(logits_of(x, xt), x, w) for x, xt, w in zip(batch.x0, noised.xt, where, strict=True)])


def ar_nlls(model, batch) -> torch.Tensor:
    """[B L]: the AR losses of the maskable tokens."""
    return torch.stack([nll(causal(model, x), x, m) for x, m in zip(batch.x0, batch.maskable, strict=True)])


def level_of_token(batch, levels, size, begin=0) -> torch.Tensor:
    """[B L]: the levels, drawn for every block with maskable tokens in turn, at its tokens; elsewhere anything."""
    length, before = batch.maskable.shape[1], -begin % size
    whole = torch.nn.functional.pad(batch.maskable, (before, -(before + length) % size))
    blocks = whole.unflatten(1, (-1, size)).any(2)
    of_block = torch.full(blocks.shape, 0.5).masked_scatter(blocks, levels)
    return of_block.repeat_interleave(size, 1).double()[:, before : before + length]
