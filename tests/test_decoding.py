"""Decoding: the AR limit, batches against single prompts, the count of forwards, and what each decoder commits."""

import pytest
import torch
from common import (
    EOS_ID,
    MASK_ID,
    PATTERNS,
    WITH_SHIFT,
    config,
    denoiser,
    let_it_say,
    logits_in_bfloat16,
    options,
    random_batch,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from dlm.attention.bidir import Bidir
from dlm.config.build import make
from dlm.decoding.approximate import DualCache
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import step
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.types import Batch, Noised, generator

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]
NEW = 14


def decode(scorer, prompts, decoder, new=NEW, eos=None, **kwargs):
    return decoder.generate(scorer, Request(prompts, new, eos, **kwargs))


@pytest.mark.parametrize(("pattern", "size"), [("block", 1), ("ar", 1)])
def test_ar_limit_is_hugging_faces_greedy_generate_token_for_token(model, pattern, size):
    """AR decoding is Hugging Face's greedy `generate`, token for token (I1). The model may not predict the mask token,
    so `generate` is kept from it as well."""
    rule = GenerationConfig(
        max_new_tokens=NEW, do_sample=False, suppress_tokens=[MASK_ID], eos_token_id=EOS_ID, pad_token_id=1
    )
    scorer = denoiser(model, pattern, size, True)
    for prompt, got in zip(PROMPTS, decode(scorer, PROMPTS, Fixed(1), eos=EOS_ID), strict=True):
        expected = model.generate(torch.tensor([prompt]), generation_config=rule)[0, len(prompt) :].tolist()
        assert got.tokens == expected
        assert got.nfe == len(expected)


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", ["bidir", "block_noisy", "block"])
@pytest.mark.parametrize("decoder", [Fixed(1), Fixed(3), Threshold(0.3), Threshold(1.0)])
def test_a_ragged_batch_gives_the_tokens_and_the_nfe_of_single_prompts(llama, pattern, token_shift, decoder):
    """A ragged batch gives the tokens and the forwards of single prompts (I5)."""
    scorer = denoiser(llama, pattern, 4, token_shift)
    batched = decode(scorer, PROMPTS, decoder, eos=EOS_ID)
    single = [decode(scorer, [prompt], decoder, eos=EOS_ID)[0] for prompt in PROMPTS]
    assert batched == single
    assert len({g.nfe for g in batched}) > 1 or decoder.__class__ is Fixed


@pytest.mark.parametrize(("pattern", "token_shift"), [(n, s) for n, s in WITH_SHIFT if PATTERNS[n].noisy_stream])
def test_cached_decoding_equals_recomputing_everything(model, pattern, token_shift):
    """Cached decoding gives the tokens of a naive loop (I5): the whole canvas through the training forward at every
    step, no cache."""
    scorer = denoiser(model, pattern, 4, token_shift)
    for prompt in PROMPTS[:3]:
        got = decode(scorer, [prompt], Fixed(1), new=8)[0]
        assert (got.tokens, got.nfe) == naive(scorer, prompt, 8)


@pytest.mark.trains
@pytest.mark.parametrize("token_shift", [False, True])
def test_a_canvas_that_ends_with_the_block_is_read_up_to_there(llama, token_shift):
    """By single sequences and by batches of which each is at another block."""
    scorer = Denoiser(llama, Bidir(4, canvas="block"), MASK_ID, token_shift, layer_types(llama))
    whole = denoiser(llama, "bidir", 4, token_shift)
    batched = decode(scorer, PROMPTS, Fixed(1), new=8)
    for prompt, together in zip(PROMPTS, batched, strict=True):
        alone = decode(scorer, [prompt], Fixed(1), new=8)[0]
        assert (alone.tokens, alone.nfe) == (together.tokens, together.nfe) == naive(scorer, prompt, 8)
    assert [g.tokens for g in batched] != [g.tokens for g in decode(whole, PROMPTS, Fixed(1), new=8)]
    assert sum(g.rows for g in batched) < sum(g.rows for g in decode(whole, PROMPTS, Fixed(1), new=8))


def naive(scorer, prompt, new):
    """Commit the most confident masked token of the current block, until the tokens asked for are there."""
    size, wanted = scorer.pattern.block_size, len(prompt) + new
    total = -(-wanted // size) * size
    x = torch.tensor([prompt + [MASK_ID] * (total - len(prompt))])
    layout = random_batch(1, total)
    nfe = 0
    for start in range(len(prompt) // size * size, total, size):
        whole = scorer.pattern.whole_canvas and not scorer.pattern.cacheable
        end = total if whole else start + size
        while (x[0, start : min(start + size, wanted)] == MASK_ID).any():
            where = (x[0, start : start + size] == MASK_ID).nonzero()[:, 0] + start
            masked = torch.zeros_like(layout.maskable)
            masked[0, where] = True
            seen = Batch(x[:, :end], layout.maskable[:, :end], layout.document[:, :end], layout.position[:, :end])
            inputs, _ = scorer.inputs(seen, Noised(x[:, :end], masked[:, :end], masked[:, :end].float()))
            probability, token = scorer(inputs).softmax(-1).max(-1)
            best = probability.argmax()
            x[0, where[best]] = token[best]
            nfe += 1
            if scorer.token_shift and where.tolist() == [start, where[best]]:
                x[0, start] = token[0]  # a first token that is left alone had its final score already
    return x[0, len(prompt) : wanted].tolist(), nfe


@pytest.mark.trains
@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", ["ar", "bidir", "block_noisy", "block"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_finished_sequences_leave_the_batch_and_waiting_ones_join_it(llama, pattern, token_shift, batch_size):
    """No forward is spent on a finished sequence: the rows of all forwards are the NFE of all sequences."""
    scorer = denoiser(llama, pattern, 4, token_shift or pattern == "ar")
    alone = decode(scorer, PROMPTS, Threshold(0.3), eos=EOS_ID, batch_size=1)
    sizes = []
    handle = llama.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    made = decode(scorer, PROMPTS, Threshold(0.3), eos=EOS_ID, batch_size=batch_size)
    handle.remove()
    assert made == alone
    assert sum(sizes) == sum(g.nfe for g in made) and max(sizes) <= batch_size


def test_a_forward_on_a_gpu_waits_for_nothing(llama, monkeypatch):
    """The shapes and the branches of a step do not depend on values that are on the device."""
    scorer = denoiser(llama, "block", 4, True)
    canvas = Canvas(scorer, Request(PROMPTS, NEW, EOS_ID), list(range(5)), 24, fixed_shapes=True)
    step(scorer, canvas, Threshold(0.3).rule)
    canvas.make_room_for_pending(ask=False)
    shapes = set()
    handle = llama.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.add(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with Syncs() as syncs:
        for _ in range(6):
            step(scorer, canvas, Threshold(0.3).rule)
    handle.remove()
    assert syncs.seen == [] and shapes == {(5, 8)}  # [pending ; current]


class Syncs(TorchDispatchMode):
    """The operations that make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_forwards_of_the_network_are_the_nfe(llama):
    """Every forward is counted, and none is made only to fill the cache."""
    calls = []
    handle = llama.model.register_forward_pre_hook(lambda *args: calls.append(1))
    made = decode(denoiser(llama, "block", 4, False), [PROMPTS[2]], Fixed(1), new=7)[0]  # slots 9-15: two blocks
    assert len(calls) == made.nfe == 7
    calls.clear()
    made = decode(denoiser(llama, "block", 4, False), [PROMPTS[2]], Threshold(0.0), new=7)[0]
    handle.remove()
    assert len(calls) == made.nfe == 2  # one forward a block


def test_fixed_commits_k_tokens_per_step(llama):
    made = decode(denoiser(llama, "block", 8, False), [[5] * 8], Fixed(2), new=8)[0]
    assert sorted(made.step) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_threshold_commits_exactly_what_exceeds_it():
    confidence = torch.tensor([[0.95, 0.5, 0.9, -1.0]])
    assert Threshold(0.9).rule.select(confidence, confidence).tolist() == [[True, False, False, False]]


def test_generation_ends_with_eos_and_the_tail_costs_no_forwards(llama):
    """A model that always predicts EOS ends in one forward, whatever the block size."""
    scorer = denoiser(llama, "block", 8, False)
    let_it_say(
        scorer,
        lambda scored, *args, **kwargs: (
            torch.nn.functional.one_hot(torch.full((len(scored),), EOS_ID), 61).float() * 20
        ),
    )
    made = decode(scorer, [[5, 6, 7]], Fixed(1), new=16, eos=EOS_ID)[0]
    assert made.tokens == [EOS_ID] and made.nfe == 1


def test_a_stop_condition_ends_a_sequence_at_the_end_of_a_block(llama):
    scorer = denoiser(llama, "block", 4, False)
    free = decode(scorer, [PROMPTS[0]], Fixed(1), new=15)[0].tokens
    stopped = decode(scorer, [PROMPTS[0]], Fixed(1), new=15, stop=lambda tokens: free[4] in tokens)[0].tokens
    assert stopped == free[: len(stopped)] and 5 <= len(stopped) < 15


@pytest.mark.parametrize("name", options("decoding"))
def test_every_decoders_confidence_in_bfloat16_is_that_of_the_same_logits_in_float32(name):
    rule, logits = make(config(f"decoding={name}").decoding).rule, logits_in_bfloat16()
    token = logits.argmax(-1)
    confidence = rule.confidence(logits, token)
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, rule.confidence(logits.float(), token), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_what_is_drawn_from_in_bfloat16_is_that_of_the_same_logits_in_float32(top_p):
    rule, logits = Threshold(0.9, temperature=0.7, top_p=top_p).rule, logits_in_bfloat16()
    probabilities = rule.probabilities(logits)
    assert torch.equal(probabilities, rule.probabilities(logits.float()))


def test_sampling_follows_the_generator_and_top_p_cuts_the_tail():
    rule = Threshold(0.9, temperature=1.0, top_p=0.6).rule
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1, 4000, 4)
    token, confidence = rule.sample(logits, generator(1))
    again, _ = rule.sample(logits, generator(1))
    assert torch.equal(token, again)
    assert set(token.unique().tolist()) == {0, 1}  # 0.5 alone is short of 0.6
    assert token.double().mean() == pytest.approx(0.3 / 0.8, abs=0.04)
    torch.testing.assert_close(confidence, torch.tensor([0.5, 0.3])[token])


def test_a_prompt_that_holds_the_mask_is_refused_with_its_number(llama):
    for decoder in (Fixed(1), DualCache(0.9)):  # the engine's loop, and one of its own
        with pytest.raises(ValueError, match=f"prompt 2 holds the mask token .id {MASK_ID}"):
            decoder.generate(denoiser(llama, "bidir", 4, False), Request([[5, 6], [7, MASK_ID]], NEW, EOS_ID))


def test_an_empty_prompt_is_refused_with_the_shift_and_continued_without(llama):
    with pytest.raises(ValueError, match="empty prompt"):
        decode(denoiser(llama, "block", 4, True), [[]], Fixed(1))
    assert len(decode(denoiser(llama, "block", 4, False), [[]], Fixed(1))[0].tokens) == NEW


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoding=threshold", "decoding.threshold=-0.5"], "threshold -0.5 must be >= 0"),
        (["decoding=threshold", "decoding.temperature=-1.0"], "temperature -1.0 must be >= 0"),
        (["decoding=threshold", "decoding.top_p=0.0"], "top_p 0.0 must lie in"),
        (["decoding=fixed", "decoding.tokens_per_step=0"], "tokens_per_step 0 must be at least 1"),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        make(config(*overrides).decoding)
