"""Pipelined decoding: its limits are the sequential loop, and in between it equals a naive loop without a cache."""

import itertools
from dataclasses import replace

import pytest
import torch
from common import EOS_ID, MASK_ID, config, denoiser, let_it_say, tiny
from naive_blocks import scores

from dlm.config.build import make
from dlm.decoding.engine.request import Request
from dlm.decoding.pipelined import Pipelined
from dlm.decoding.threshold import Threshold

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]
NEW, SIZE = 14, 4
PATTERNS = ["block_noisy", "block"]
LIKED = {False: 59, True: 24}  # the token that these models like best, without and with the shift: their EOS
# τ_conf, τ_add, τ_act: all, and a part that has every pair of them.
ALL = list(itertools.product([0.2, 0.4], [0.0, 0.25, 0.5], [0.5, 1.0]))
SETTINGS = [(0.2, 0.0, 0.5), (0.4, 0.0, 1.0), (0.2, 0.25, 1.0), (0.4, 0.25, 0.5), (0.2, 0.5, 0.5), (0.4, 0.5, 1.0)]


@pytest.fixture(params=itertools.product(PATTERNS, [False, True]), ids=str)
def scorer(request, llama):
    return denoiser(llama, request.param[0], SIZE, request.param[1])


def result(made):
    return [(g.tokens, g.nfe) for g in made]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("activate_at", [0.0, 0.5, 1.0])
def test_adding_a_block_only_when_the_last_is_full_is_the_sequential_loop(scorer, threshold, activate_at, ends):
    """The tokens, the forwards, the rows they read, and when each token was committed with which confidence."""
    eos = LIKED[scorer.token_shift] if ends else None
    made = Pipelined(threshold, 1.0, activate_at).generate(scorer, Request(PROMPTS, NEW, eos))
    assert made == Threshold(threshold).generate(scorer, Request(PROMPTS, NEW, eos))


@pytest.mark.parametrize("ends", [False, True])
def test_where_nothing_is_confident_and_blocks_wait_to_be_activated_it_is_the_sequential_loop(scorer, ends):
    """Even if a block is added in every step: a semi-activated block commits nothing then."""
    eos = LIKED[scorer.token_shift] if ends else None
    made = Pipelined(1.0, 0.0, 1.0).generate(scorer, Request(PROMPTS, NEW, eos))
    sequential = Threshold(1.0).generate(scorer, Request(PROMPTS, NEW, eos))
    assert [replace(g, rows=0) for g in made] == [replace(g, rows=0) for g in sequential]
    assert sum(g.rows for g in made) > sum(g.rows for g in sequential)  # of blocks that do not pay
    for g in made:  # one token per step, but for the first token of a block that is left alone and the tail behind EOS
        assert scorer.token_shift or eos is not None or len(set(g.step)) == len(g.step)


def test_in_between_it_is_faster_and_gives_other_tokens(scorer):
    """Else the two tests above would pass for the sequential loop itself."""
    sequential = Threshold(0.2).generate(scorer, Request(PROMPTS, NEW, None))
    pipelined = Pipelined(0.2, 0.25, 0.5).generate(scorer, Request(PROMPTS, NEW, None))
    assert sum(g.nfe for g in pipelined) < sum(g.nfe for g in sequential)
    assert [g.tokens for g in pipelined] != [g.tokens for g in sequential]


@pytest.mark.trains
@pytest.mark.parametrize("settings", [SETTINGS, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("ends", [False, True])
def test_it_equals_a_naive_loop_without_a_cache(scorer, ends, settings):
    eos, early = LIKED[scorer.token_shift] if ends else None, 0
    for (threshold, add_at, activate_at), prompt in itertools.product(settings, PROMPTS[:3]):
        made = Pipelined(threshold, add_at, activate_at).generate(scorer, Request([prompt], NEW, eos))
        assert result(made) == [naive(scorer, prompt, threshold, add_at, activate_at, eos)]
        early += len(made[0].tokens) < NEW
    assert bool(early) == ends


@pytest.mark.parametrize("pattern", PATTERNS)
def test_on_other_architectures_it_equals_a_naive_loop_too(model, pattern):
    """Windows, normalised queries, scaled embeddings."""
    scorer = denoiser(model, pattern, SIZE, True)
    made = Pipelined(0.2, 0.25, 0.5).generate(scorer, Request(PROMPTS, NEW, None))
    assert result(made) == [naive(scorer, prompt, 0.2, 0.25, 0.5, None) for prompt in PROMPTS]


def naive(scorer, prompt, threshold, add_at, activate_at, eos):
    """One sequence, everything read again in every step under a mask that is written out pair by pair."""
    wanted, length = len(prompt) + NEW, -(-(len(prompt) + NEW) // SIZE) * SIZE
    x = prompt + [MASK_ID] * (length - len(prompt))
    start = end = len(prompt) // SIZE * SIZE
    for nfe in itertools.count(1):
        before = [1.0] + [sum(t != MASK_ID for t in x[b : b + SIZE]) / SIZE for b in range(0, length, SIZE)]
        eos_seen = eos is not None and eos in x[len(prompt) : end]
        if end < length and not eos_seen and (end == start or before[end // SIZE] >= add_at):
            end += SIZE
        score = scores(scorer, x[:end], start)
        for begin in range(start, end, SIZE):
            at = [i for i in range(begin, begin + SIZE) if x[i] == MASK_ID and i in score]
            first_end = min((i for i in at if score[i][0] == eos), default=length)
            candidates = [i for i in at if i <= first_end]
            keep = [i for i in candidates if score[i][1] > threshold]
            if at and (begin == start or before[begin // SIZE] >= activate_at):
                keep.append(max(candidates, key=lambda i: score[i][1]))
            left = [i for i in at if i != begin and i not in keep and not (first_end in keep and i > first_end)]
            if scorer.token_shift and begin == start and not left:
                keep += at[:1]
            for i in keep:
                x[i] = score[i][0]
            ends = [i for i in keep if x[i] == eos]
            for i in at:
                if ends and i > min(ends) and x[i] == MASK_ID:
                    x[i] = eos
        filled = (x + [MASK_ID]).index(MASK_ID)
        new = x[len(prompt) : min(filled, wanted)]
        if eos in x[len(prompt) : filled] or filled >= wanted:
            return new[: new.index(eos) + 1] if eos in new else new, nfe
        start = filled // SIZE * SIZE


@pytest.mark.parametrize("setting", [(0.2, 0.25, 0.5), (0.2, 0.0, 1.0), (0.5, 0.5, 0.0)])
def test_a_ragged_batch_gives_the_tokens_and_the_nfe_of_single_prompts(scorer, setting):
    """A ragged batch gives the tokens and the forwards of single prompts (I5)."""
    decoder, eos = Pipelined(*setting), LIKED[scorer.token_shift]
    single = [decoder.generate(scorer, Request([prompt], NEW, eos))[0] for prompt in PROMPTS]
    for batch_size in (2, 8):
        assert decoder.generate(scorer, Request(PROMPTS, NEW, eos, batch_size=batch_size)) == single


def test_every_forward_is_counted_and_every_row_of_it(scorer):
    read = []
    embedding = scorer.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, __: read.append(args[0].shape[1]))
    try:
        for prompt in PROMPTS:
            read.clear()
            (made,) = Pipelined(0.2, 0.25, 0.5).generate(scorer, Request([prompt], NEW, EOS_ID))
            assert (made.nfe, made.rows) == (len(read), sum(read))
    finally:
        hook.remove()


def test_a_step_adds_one_block_at_most_and_finishing_one_costs_no_forward(llama):
    """Four blocks behind a prompt of one, every token confident: each step adds one block, fills it and writes the
    block before it."""
    read, scorer = [], denoiser(llama, "block_noisy", SIZE, False)
    embedding = llama.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, __: read.append(args[0].shape[1]))
    try:
        (made,) = Pipelined(0.0, 0.0, 1.0).generate(scorer, Request([[5, 6, 7, 8]], 16, None))
    finally:
        hook.remove()
    assert read == [8, 8, 8, 8] and made.step == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_what_a_block_sees_does_not_change_with_later_blocks(scorer):
    """Cache exactness: the tokens of a prompt do not depend on how much may follow, nor their confidences."""
    decoder = Pipelined(0.2, 0.0, 0.5)
    longer = decoder.generate(scorer, Request(PROMPTS, 23, None))
    for short, long, prompt in zip(decoder.generate(scorer, Request(PROMPTS, 11, None)), longer, PROMPTS, strict=True):
        whole = (len(prompt) + 11) // SIZE * SIZE - len(prompt)
        assert short.tokens[:whole] == long.tokens[:whole]
        assert short.step[:whole] == long.step[:whole]
        torch.testing.assert_close(torch.tensor(short.confidence[:whole]), torch.tensor(long.confidence[:whole]))


def test_no_block_is_added_behind_an_eos_and_those_that_are_there_are_dropped(llama):
    """The third block becomes sure of EOS when the fourth is there and the first two are masked: only those go on."""
    scorer, ends = denoiser(llama, "block_noisy", SIZE, False), []

    def score(scored, position_ids, **kwargs):
        logits = torch.zeros(len(scored), 61)
        logits[:, 9] = 1.0  # everywhere unsure
        at = position_ids.flatten()[scored]
        logits[(at >= 12) & (at < 16) & (at.max() >= 16), EOS_ID] = 50.0
        return logits

    let_it_say(scorer, score)
    made = Pipelined(0.9, 0.0, 1.0).generate(
        scorer, Request([[5, 6, 7, 8]], 40, EOS_ID, on_step=lambda canvas: ends.append(int(canvas.end[0])))
    )[0]
    assert made.tokens == [9] * 8 + [EOS_ID]
    assert ends == [8, 12, 16, 16, 16, 16, 16, 16] and made.nfe == 8


def test_a_stop_ends_a_sequence_when_blocks_are_done(llama):
    scorer, decoder = denoiser(llama, "block_noisy", SIZE, False), Pipelined(0.2, 0.25, 0.5)
    free = decoder.generate(scorer, Request([PROMPTS[0]], 15, None))[0].tokens
    stopped = decoder.generate(scorer, Request([PROMPTS[0]], 15, None, stop=lambda tokens: free[4] in tokens))[0].tokens
    assert stopped == free[: len(stopped)] and 5 <= len(stopped) < 15


def test_blocks_that_see_later_ones_or_are_not_denoised_and_bad_values_are_refused(llama):
    decoder = Pipelined(0.9, 0.1, 0.95)
    with pytest.raises(ValueError, match="Bidir lets blocks see later ones: choose attention=block_noisy"):
        decoder.generate(denoiser(llama, "bidir", SIZE, False), Request(PROMPTS, NEW, EOS_ID))
    with pytest.raises(ValueError, match="AR denoises no blocks"):
        decoder.generate(denoiser(llama, "ar", 1, True), Request(PROMPTS, NEW, EOS_ID))
    with pytest.raises(ValueError, match="empty prompt"):
        decoder.generate(denoiser(llama, "block", SIZE, True), Request([[]], NEW, EOS_ID))
    for name, value in (("add_at", 1.5), ("activate_at", -0.1)):
        with pytest.raises(ValueError, match=rf"decoding.{name} {value} must lie in \[0, 1\]"):
            make(config("decoding=pipelined", f"decoding.{name}={value}").decoding)


def test_one_in_ten_reaches_a_tenth():
    """As 1 - 9/10 it does not."""
    scorer = denoiser(tiny("llama"), "block_noisy", 10, False)
    steps = []
    Pipelined(1.0, 0.1, 1.0).generate(
        scorer, Request([[5] * 10], 20, None, on_step=lambda c: steps.append(int(c.end[0])))
    )
    assert steps[:2] == [20, 30]
