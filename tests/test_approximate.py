"""Approximate caches: exact where they are refreshed at every step, and what they read otherwise."""

import pytest
import torch
from common import EOS_ID, config, denoiser

from dlm.config.build import make
from dlm.decoding.approximate import DualCache, PrefixCache
from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]
NEW = 14
KINDS = [PrefixCache, DualCache]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_refreshed_at_every_step_it_is_plain_bidirectional_decoding(model, kind, token_shift, threshold):
    scorer = denoiser(model, "bidir", 4, token_shift)
    plain = Threshold(threshold).generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    assert kind(threshold, refresh=1).generate(scorer, Request(PROMPTS, NEW, EOS_ID)) == plain
    assert kind(threshold, refresh=1).generate(scorer, Request(PROMPTS, NEW, EOS_ID, batch_size=2)) == plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_shift", [False, True])
def test_a_block_as_long_as_the_canvas_leaves_nothing_to_approximate(llama, kind, token_shift):
    """All is read again in every forward, whatever the refresh."""
    scorer = denoiser(llama, "bidir", 32, token_shift)
    plain = Threshold(0.3).generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    assert kind(0.3).generate(scorer, Request(PROMPTS, NEW, EOS_ID)) == plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("refresh", [None, 2])
def test_a_ragged_batch_gives_the_tokens_and_the_nfe_of_single_prompts(llama, kind, token_shift, refresh):
    scorer = denoiser(llama, "bidir", 4, token_shift)
    decoder = kind(0.3, refresh=refresh)
    batched = decoder.generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    assert batched == [decoder.generate(scorer, Request([prompt], NEW, EOS_ID))[0] for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("kind", "expected"), [(PrefixCache, [16, 12, 16, 8, 16, 4]), (DualCache, [16, 4, 16, 4, 16, 4])]
)
def test_every_forward_counts_and_reads_only_what_is_not_cached(llama, kind, expected):
    """Three blocks of four tokens behind a prompt of four, two tokens per forward."""
    scorer, read = denoiser(llama, "bidir", 4, False), []
    embedding = scorer.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, __: read.append(args[0].shape[1]))
    decoder = kind(2.0)
    decoder.rule.select = lambda confidence, rank: (rank > -torch.inf) & (rank >= rank.topk(2).values[:, -1:])
    try:
        (made,) = decoder.generate(scorer, Request([[30, 31, 32, 33]], 12, None))
    finally:
        hook.remove()
    assert read == expected
    assert made.nfe == 6 and len(made.tokens) == 12


def test_a_stale_cache_shows_in_the_confidences(llama):
    """Else nothing was approximated, and the tests above would pass for the plain loop."""
    scorer = denoiser(llama, "bidir", 4, False)
    plain = Threshold(0.3).generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    prefix, dual = (kind(0.3).generate(scorer, Request(PROMPTS, NEW, EOS_ID)) for kind in KINDS)
    assert len({repr(plain), repr(prefix), repr(dual)}) == 3


def test_attention_with_an_exact_cache_and_bad_values_are_refused(llama):
    with pytest.raises(ValueError, match="Block can: choose decoding=threshold"):
        DualCache(0.9).generate(denoiser(llama, "block", 4, False), Request(PROMPTS, NEW, EOS_ID))
    with pytest.raises(ValueError, match="decoding.refresh 0 must be at least 1"):
        make(config("decoding=dual_cache", "decoding.refresh=0").decoding)
    with pytest.raises(ValueError, match="max_new_tokens 0"):
        DualCache(0.9).generate(denoiser(llama, "bidir", 4, False), Request(PROMPTS, 0, EOS_ID))
    with pytest.raises(ValueError, match="empty prompt"):
        DualCache(0.9).generate(denoiser(llama, "bidir", 4, True), Request([[]], NEW, EOS_ID))
