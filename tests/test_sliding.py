"""Sliding blocks: the limits of MARS (AR decoding), an uncached loop by hand, batches, and the room at the end."""

import pytest
import torch
from common import EOS_ID, MASK_ID, PATTERNS, denoiser, let_it_say

from dlm.attention.block import Block
from dlm.attention.block_causal import BlockCausal
from dlm.attention.block_token_causal import BlockTokenCausal
from dlm.decoding.ar import AR
from dlm.decoding.engine import session
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import plan_step, step
from dlm.decoding.entropy import Entropy
from dlm.decoding.fixed import Fixed
from dlm.decoding.prefix import Prefix
from dlm.decoding.threshold import Threshold
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]
NEW = 14


def scorer(model, pattern, size, token_shift):
    return Denoiser(model, pattern(size), MASK_ID, token_shift, layer_types(model))


def decode(scorer, decoder, prompts=PROMPTS, new=NEW, eos=EOS_ID, **kwargs):
    return decoder.generate(scorer, Request(prompts, new, eos, **kwargs))


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("pattern", [BlockTokenCausal, BlockCausal])
def test_one_token_per_forward_is_greedy_ar_for_any_weights_and_any_window(model, pattern, size):
    """MARS, §3.4: what lies to the right of the last token does not change what it predicts."""
    mars = scorer(model, pattern, size, True)
    expected, made = decode(mars, AR()), decode(mars, Prefix(None))
    assert [(g.tokens, g.nfe) for g in made] == [(g.tokens, g.nfe) for g in expected]
    assert [g.tokens for g in decode(mars, Prefix(0.1))] != [g.tokens for g in expected]


@pytest.mark.parametrize("threshold", [None, 0.0, 0.5])
def test_a_window_of_one_token_is_greedy_ar_at_any_threshold(llama, threshold):
    mars = scorer(llama, BlockCausal, 1, True)
    expected, made = decode(mars, AR()), decode(mars, Prefix(threshold))
    assert [(g.tokens, g.nfe) for g in made] == [(g.tokens, g.nfe) for g in expected]


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_threshold_of_zero_gives_exactly_the_window_per_forward(llama, pattern, token_shift):
    size = 1 if pattern == "ar" else 5
    for made in decode(denoiser(llama, pattern, size, token_shift or size == 1), Prefix(0.0), eos=None):
        assert made.nfe == -(-NEW // size) and len(made.tokens) == NEW
        assert made.step == [1 + i // size for i in range(NEW)]


VISIBLE = {  # of the clean stream and of the noisy block: whether they are causal
    BlockCausal: (True, True),
    BlockTokenCausal: (True, False),
    Block: (False, False),
    PATTERNS["block_noisy"]: (False, False),
}


def naive(model, prompt, size, token_shift, threshold, visible):
    """MARS's loop without a cache: [tokens ; masks] through the model under a mask by hand. Where the clean stream is
    causal by block, what was committed together is a block, and the prompt's blocks are counted from its end."""
    clean_causal, noisy_causal = visible
    tokens, nfe = list(prompt), 0
    block = [(i - len(prompt)) // size for i in range(len(prompt))]
    while len(tokens) < len(prompt) + NEW and EOS_ID not in tokens[len(prompt) :]:
        length = len(tokens)
        group = torch.tensor(block + [10**6] * size)
        order = torch.arange(length + size)
        seen = group <= group[:, None]
        if clean_causal:
            seen[:length] = order <= order[:length, None]
        if noisy_causal:
            seen[length:] = order <= order[length:, None]
        ids = torch.tensor([tokens + [MASK_ID] * size])
        logits = model(ids, attention_mask=seen[None, None]).logits[0].float()
        logits[:, MASK_ID] = -torch.inf
        logits = logits[length - 1 : -1] if token_shift else logits[length:]
        confidence, token = logits.softmax(-1).max(-1)
        passed = [True, *(confidence[1:] >= threshold).tolist(), False]
        kept = passed.index(False)
        tokens += token[:kept].tolist()
        block += [nfe] * kept
        nfe += 1
    made = tokens[len(prompt) :][:NEW]
    return made[: made.index(EOS_ID) + 1] if EOS_ID in made else made, nfe


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", VISIBLE)
@torch.no_grad()
def test_cached_decoding_equals_an_uncached_loop_by_hand(llama, pattern, token_shift):
    made = decode(scorer(llama, pattern, 4, token_shift), Prefix(0.2))
    for prompt, got in zip(PROMPTS, made, strict=True):
        assert (got.tokens, got.nfe) == naive(llama, prompt, 4, token_shift, 0.2, VISIBLE[pattern])
    assert len({g.nfe for g in made}) > 1 and any(g.tpf > 1.2 for g in made)


@pytest.mark.parametrize("pattern", [BlockTokenCausal, BlockCausal])
def test_the_cache_is_that_of_ar_whatever_was_committed_together(model, pattern):
    def on_step(canvas):
        for n in (~canvas.finished).nonzero()[:, 0].tolist():
            written = int(canvas.written[n])
            plain = model(canvas.x[n : n + 1, :written], use_cache=True).past_key_values
            for layer, expected in zip(canvas.cache.layers, plain.layers, strict=True):
                length = expected.keys.shape[2]  # a layer with a sliding window keeps only the last ones
                ours = layer.keys[n, :, 1 + written - length : written + 1]
                torch.testing.assert_close(ours, expected.keys[0])

    decode(scorer(model, pattern, 4, True), Prefix(0.1), PROMPTS[:2], on_step=on_step)


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("decoder", [Prefix(0.1), Threshold(0.1, sliding=True)])
def test_a_ragged_batch_gives_what_single_prompts_give(llama, pattern, token_shift, decoder):
    """A ragged batch gives the tokens, forwards, steps and rows of single prompts, also where sequences join late
    (I5)."""
    causal = pattern == "ar"
    sliding = denoiser(llama, pattern, 1 if causal else 4, token_shift or causal)
    single = [decode(sliding, decoder, [prompt])[0] for prompt in PROMPTS]
    assert decode(sliding, decoder) == decode(sliding, decoder, batch_size=2) == single


@pytest.fixture
def like_a_gpu(monkeypatch, uncompiled):
    """Fixed shapes, without a compiler and without CUDA."""
    monkeypatch.setattr(session, "replays", lambda *args: False)


@pytest.mark.parametrize("decoder", [Prefix(0.1), Threshold(0.1, sliding=True), Entropy(2.0, sliding=True)])
@pytest.mark.parametrize("pattern", ["block", "bidir"])
def test_fixed_shapes_give_the_same(llama, like_a_gpu, decoder, pattern):
    sliding = denoiser(llama, pattern, 4, True)
    plain = decode(sliding, decoder)
    assert decoder.generate(sliding, Request(PROMPTS, NEW, EOS_ID, batch_size=2, compile=True)) == plain


def test_a_step_changes_the_state_in_place(llama):
    """What a CUDA graph asks for: it is recorded with addresses. The prompt's length is not what slides."""
    scorer = denoiser(llama, "block", 4, True)
    canvas = Canvas(scorer, Request(PROMPTS, NEW, EOS_ID), list(range(5)), 28, True, sliding=True)

    def addresses():
        return [getattr(canvas, name).data_ptr() for name in Canvas.STATE]

    before = addresses()
    with torch.no_grad():
        for _ in range(3):
            step(scorer, canvas, Prefix(0.1).rule)
    assert addresses() == before
    assert canvas.prompt_length.tolist() == [len(p) for p in PROMPTS] and (canvas.start > canvas.prompt_length).all()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("new", [1, 3, 4, 9])
def test_there_is_room_for_a_whole_window_at_the_end(llama, pattern, new):
    """Every forward reads a whole window, also for the last token alone."""
    size, widths = 1 if pattern == "ar" else 4, []
    handle = llama.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    (made,) = decode(denoiser(llama, pattern, size, True), Prefix(None), PROMPTS[:1], new, None)
    handle.remove()
    assert len(made.tokens) == made.nfe == new and sum(widths) == made.rows
    if pattern.startswith("block"):
        assert widths == [5 + size] + [1 + size] * (new - 1)


def test_without_sliding_the_blocks_are_those_of_the_grid(llama):
    """A prompt of 5 leaves 3 places of its block of 4."""
    made = decode(denoiser(llama, "block", 4, False), Prefix(0.0, sliding=False), PROMPTS[:1], 11, None)[0]
    assert made.step == [1] * 3 + [2] * 4 + [3] * 4


def test_a_window_that_begins_on_the_grid_sees_what_a_block_of_the_grid_sees(llama):
    scorer, request = denoiser(llama, "block", 4, False), Request([[5] * 8], 4)
    grid, sliding = (Canvas(scorer, request, [0], 16, sliding=s) for s in (False, True))
    a, b = (plan_step(scorer, canvas)[0].columns for canvas in (grid, sliding))
    assert torch.equal(a.position, b.position) and torch.equal(a.clean, b.clean) and torch.equal(a.document, b.document)


def test_no_forward_is_spent_on_what_lies_behind_an_eos(llama):
    """Slot 5 is surely EOS; slot 7, which the next window begins to show, is more probable than slot 4."""
    best = {3: (7, 5.0), 4: (7, 4.0), 5: (EOS_ID, 20.0), 6: (7, 4.5), 7: (7, 5.5)}
    eager = denoiser(llama, "block", 4, False)

    def score(scored, position_ids, **kwargs):
        logits = torch.zeros(len(scored), 61)
        for row, position in zip(logits, position_ids.flatten()[scored].tolist(), strict=True):
            token, value = best[position]
            row[token] = value
        return logits

    let_it_say(eager, score)
    (made,) = decode(eager, Threshold(0.99, sliding=True), [[5, 6, 7]], 16)
    assert made.tokens == [7, 7, EOS_ID] and made.step == [2, 3, 1] and made.nfe == 3


def test_a_stop_is_asked_after_every_forward_that_moves_the_window(llama):
    sliding = denoiser(llama, "block", 4, False)
    free = decode(sliding, Prefix(None), PROMPTS[:1], 12, None)[0].tokens
    stopped = decode(sliding, Prefix(None), PROMPTS[:1], 12, None, stop=lambda tokens: free[5] in tokens)[0].tokens
    assert stopped == free[: free.index(free[5]) + 1]


def test_only_what_slides_by_default_slides():
    assert not Fixed(1).loop.sliding and Prefix(0.9).loop.sliding
