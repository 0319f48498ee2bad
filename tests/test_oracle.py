"""The oracle: the fewest forwards in which a model gives a text, found by a naive loop as well."""

import pytest
import torch
from common import EOS_ID, MASK_ID, denoiser, random_batch

from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.oracle import Oracle
from dlm.types import Batch, Noised

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]


NEW = 14


def decode(scorer, decoder, prompts=PROMPTS, new=NEW, eos=EOS_ID, **kwargs):
    return decoder.generate(scorer, Request(prompts, new, eos, **kwargs))


def naive_oracle(scorer, prompt, tokens):
    """Without a cache: the whole canvas through the training forward, and what agrees with the tokens is filled in."""
    size, wanted = scorer.pattern.block_size, len(prompt) + len(tokens)
    total = -(-wanted // size) * size
    truth = torch.tensor([*prompt, *tokens])
    x = torch.full((1, total), MASK_ID)
    x[0, : len(prompt)] = torch.tensor(prompt)
    layout, nfe, given = random_batch(1, total), 0, 0
    for start in range(len(prompt) // size * size, total, size):
        end = start + size if scorer.pattern.cacheable else total
        while (x[0, start : min(start + size, wanted)] == MASK_ID).any():
            masked = torch.zeros_like(layout.maskable)
            masked[0, start : start + size] = x[0, start : start + size] == MASK_ID
            seen = Batch(x[:, :end], layout.maskable[:, :end], layout.document[:, :end], layout.position[:, :end])
            inputs, _ = scorer.inputs(seen, Noised(x[:, :end], masked[:, :end], masked[:, :end].float()))
            probability, token = scorer(inputs).softmax(-1).max(-1)
            where = masked[0].nonzero()[:, 0]
            nfe += 1
            known = where < wanted
            right = known & (token == truth[where.clamp_max(wanted - 1)])
            if not right.any():
                right[probability.masked_fill(~known, -1).argmax()] = True
                given += 1
            x[0, where[right]] = truth[where[right]]
    return nfe, given


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", ["block_noisy", "block"])
def test_the_oracle_gives_the_reference_in_the_forwards_of_a_naive_loop(llama, pattern, token_shift):
    scorer = denoiser(llama, pattern, 4, token_shift)
    expected = decode(scorer, Fixed(1), eos=None)
    made = decode(scorer, Oracle(), eos=None)
    assert [g.tokens for g in made] == [g.tokens for g in expected]
    for prompt, got, reference in zip(PROMPTS, made, expected, strict=True):
        assert got.nfe <= reference.nfe
        assert (got.nfe, got.confidence.count(0.0)) == naive_oracle(scorer, prompt, reference.tokens)
    assert any(g.tpf > 1 for g in made)


@pytest.mark.trains
def test_the_oracle_ends_with_the_eos_of_its_reference(model):
    scorer = denoiser(model, "block", 4, True)
    for sliding in (False, True):
        expected = decode(scorer, Fixed(1, sliding=sliding), new=40)
        made = decode(scorer, Oracle(sliding=sliding), new=40)
        assert [g.tokens for g in made] == [g.tokens for g in expected]
        # Keys and values of a sliding block depend on what was committed together, so there each pass is of its own.
        assert all(g.nfe <= (len(e.tokens) if sliding else e.nfe) for g, e in zip(made, expected, strict=True))
