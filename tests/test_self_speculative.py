"""Self-speculation: the tokens, the distribution and the cache of AR decoding, whatever the draft is worth."""

import itertools

import pytest
import torch
from common import EOS_ID, MASK_ID, PATTERNS, SHAPE, denoiser, everyday, pattern_of
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM

from dlm.attention.ar import AR as Causal
from dlm.attention.block import Block
from dlm.decoding.ar import AR
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.verify import Speculation, accept
from dlm.decoding.lookup import Lookup
from dlm.decoding.self_speculative import SelfSpeculative
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.types import Rows, generator

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]
NEW = 14


def tokens(made):
    return [g.tokens for g in made]


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_greedy_self_speculation_is_ar_decoding_token_for_token(llama, pattern, token_shift, fused, size):
    scorer = denoiser(llama, pattern, size, token_shift)
    expected = AR().generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    made = SelfSpeculative(fused).generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    assert tokens(made) == tokens(expected)
    assert all(g.nfe <= e.nfe for g, e in zip(made, expected, strict=True))
    assert all(g.confidence == pytest.approx(e.confidence) for g, e in zip(made, expected, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_on_every_architecture_also_with_sliding_windows_of_attention(model, fused):
    scorer = denoiser(model, "block", 4, False)
    made = SelfSpeculative(fused).generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    assert tokens(made) == tokens(AR().generate(scorer, Request(PROMPTS, NEW, EOS_ID)))


def test_ar_is_hugging_faces_greedy_generate_whatever_the_pattern(llama):
    scorer = denoiser(llama, "bidir", 4, False)
    for prompt, made in zip(PROMPTS, AR().generate(scorer, Request(PROMPTS, NEW, None)), strict=True):
        expected = llama.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, suppress_tokens=[MASK_ID], eos_token_id=None
        )
        assert made.tokens == expected[0, len(prompt) :].tolist() and made.nfe == NEW
        assert made.rows == len(prompt) + NEW - 1  # the last token is never read


@pytest.mark.trains
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("token_shift", [False, True])
def test_a_ragged_batch_gives_what_single_prompts_give(llama, fused, token_shift):
    """A ragged batch gives the tokens, forwards, steps and rows of single prompts (I5)."""
    scorer, decoder = denoiser(llama, "block", 4, token_shift), SelfSpeculative(fused)
    single = [decoder.generate(scorer, Request([prompt], NEW, EOS_ID))[0] for prompt in PROMPTS]
    for batch_size in (2, 8):
        batched = decoder.generate(scorer, Request(PROMPTS, NEW, EOS_ID, batch_size=batch_size))
        for a, b in zip(batched, single, strict=True):
            assert (a.tokens, a.nfe, a.rows, a.step) == (b.tokens, b.nfe, b.rows, b.step)
            assert a.confidence == pytest.approx(b.confidence)


@pytest.mark.parametrize("fused", [False, True])
def test_the_cache_of_accepted_tokens_is_that_of_ar(model, fused):
    """After every forward, against a plain forward of the parent."""
    seen = []

    def on_step(canvas):
        for n in (~canvas.finished).nonzero()[:, 0].tolist():
            written = int(canvas.written[n])
            assert written == int(canvas.start[n]) - 1  # all but the last token
            plain = model(canvas.x[n : n + 1, :written], use_cache=True).past_key_values
            for layer, expected in zip(canvas.cache.layers, plain.layers, strict=True):
                length = expected.keys.shape[2]  # a layer with a sliding window keeps only the last ones
                for ours, theirs in ((layer.keys, expected.keys), (layer.values, expected.values)):
                    torch.testing.assert_close(ours[n, :, 1 + written - length : written + 1], theirs[0])
            seen.append(n)

    SelfSpeculative(fused).generate(denoiser(model, "block", 4, True), Request(PROMPTS[:3], NEW, None, on_step=on_step))
    assert set(seen) == {0, 1, 2}


def test_a_draft_that_is_always_right_gives_the_closed_forms_of_forwards_and_rows(llama, monkeypatch):
    """Blocks of K = 4, a prompt of 5. Linear: a forward that drafts brings 1 token, one that verifies brings K; they
    read [pending ; K masks] and K tokens. Fused: K tokens a forward, which reads K tokens and K windows of K."""

    def always(self, hidden):
        return torch.nn.functional.one_hot(torch.full((len(hidden),), 7), 61).double() * 20

    monkeypatch.setattr(Denoiser, "logits", always)
    scorer = denoiser(llama, "block", 4, False)
    (linear,) = SelfSpeculative().generate(scorer, Request(PROMPTS[:1], 15, None))
    assert (linear.nfe, linear.tokens) == (6, [7] * 15)  # 1 + 4 three times
    assert linear.rows == (5 + 4) + 2 * (1 + 4) + 3 * 4
    (fused,) = SelfSpeculative(fused=True).generate(scorer, Request(PROMPTS[:1], 17, None))
    assert (fused.nfe, fused.tokens) == (5, [7] * 17)  # 1 + 4 * 4
    assert fused.rows == (5 + 4) + 4 * (4 + 4 * 4)


def test_forwards_of_the_network_are_the_nfe(llama):
    scorer, calls = denoiser(llama, "block", 4, False), []
    handle = llama.model.register_forward_pre_hook(lambda *args: calls.append(1))
    for fused in (False, True):
        calls.clear()
        (made,) = SelfSpeculative(fused).generate(scorer, Request(PROMPTS[:1], NEW, None))
        assert len(calls) == made.nfe
    handle.remove()


@pytest.mark.parametrize("stop_at", [3, 8])
def test_a_stop_ends_a_sequence_at_the_forward_in_which_it_appears(llama, stop_at):
    scorer = denoiser(llama, "block", 4, False)
    free = AR().generate(scorer, Request(PROMPTS[:1], 20, None))[0].tokens
    stop = free[:stop_at][-1]
    made = SelfSpeculative().generate(scorer, Request(PROMPTS[:1], 20, None, stop=lambda t: stop in t))[0].tokens
    first = free.index(stop)
    assert made == free[: len(made)] and first < len(made) <= first + 4


def test_a_window_is_scored_as_the_dlm_scores_a_block_after_clean_tokens():
    """The predicate against the pattern's own, where the window lies on the grid: two blocks of context, window 2."""
    rows = Rows(torch.arange(12) < 8, torch.zeros(12, dtype=torch.long), torch.arange(12), torch.full((12,), 8))
    ours, block = (p.visible(rows[:, None], rows[None]) for p in (Speculation(Block(4)), Block(4)))
    assert torch.equal(ours[8:], block[8:])
    assert torch.equal(ours[:8, :8], torch.ones(8, 8).tril().bool()) and not ours[:8, 8:].any()


def test_windows_do_not_see_each_other_and_window_i_sees_i_tokens_of_the_draft():
    """Context of 6, a draft of 2 behind it (slots 6, 7), three windows of 3: at 6, 7 and 8."""
    clean = torch.tensor([True] * 8 + [False] * 9)
    position = torch.cat([torch.arange(8), *(torch.arange(s, s + 3) for s in (6, 7, 8))])
    view = torch.cat([torch.full((8,), 6), *(torch.full((3,), s) for s in (6, 7, 8))])
    rows = Rows(clean, torch.zeros(17, dtype=torch.long), position, view)
    for pattern in PATTERNS:
        seen = Speculation(pattern_of(pattern, 3)).visible(rows[:, None], rows[None])
        for window in range(3):
            part = seen[8 + 3 * window : 11 + 3 * window]
            assert part[:, : 6 + window].all() and not part[:, 6 + window : 8].any()
            own = torch.zeros(9, dtype=torch.bool)
            own[3 * window : 3 * window + 3] = True
            assert not part[:, 8:][:, ~own].any() and part[:, 8:][:, own].diagonal().all()


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_an_accepted_or_replaced_token_is_distributed_as_the_target_whatever_the_draft(top_p):
    """The first token follows p, the share of accepted drafts is sum min(p, q), and the token after an accepted draft
    follows its own p."""
    rule, size = SelfSpeculative(temperature=1.5, top_p=top_p).rule, 20000
    logits = torch.randn(1, 2, 5, generator=generator(3), dtype=torch.float64).expand(size, -1, -1)
    proposal = torch.softmax(torch.randn(1, 1, 5, generator=generator(4), dtype=torch.float64) * 2, -1)
    proposal = proposal.expand(size, -1, -1)
    random = generator(5)
    draft = torch.multinomial(proposal[:, 0], 1, generator=random)
    accepted, token = accept(rule, draft, proposal, logits, random)
    first = torch.where(accepted == 1, draft[:, 0], token)
    target = rule.probabilities(logits[:1])[0]
    expected = target[0] * size
    counts = torch.bincount(first, minlength=5)
    assert (counts[expected == 0] == 0).all()
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3
    second = torch.bincount(token[accepted == 1], minlength=5)  # after an accepted draft: the next token's own
    rate = float(torch.minimum(target[0], proposal[0, 0]).sum())  # sum_d q min(1, p/q)
    assert float((accepted == 1).double().mean()) == pytest.approx(rate, abs=0.015)
    expected = target[1] * second.sum()
    assert chisquare(second[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.trains
@pytest.mark.parametrize(
    "decoder",
    everyday(
        [
            SelfSpeculative(True, temperature=1.5),
            SelfSpeculative(False, temperature=1.5),
            Lookup(length=2, ngram=2, temperature=1.5),
        ]
    ),
)
def test_sampled_texts_are_distributed_as_those_of_ar(decoder):
    """All texts of three tokens over five, of a random model, against their probabilities by enumeration."""
    vocab, mask, prompt, size = 6, 5, [1, 2, 1], 8000
    torch.manual_seed(1)
    shape = SHAPE | {"vocab_size": vocab, "num_hidden_layers": 1, "pad_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model("llama", **(shape | {"initializer_range": 0.5}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
    scorer = Denoiser(model, Block(3), mask, False, layer_types(model))
    texts = list(itertools.product(range(mask), repeat=3))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *text] for text in texts])).logits[:, len(prompt) - 1 : -1, :mask]
    chosen = torch.tensor(texts)[..., None]
    probability = (logits / 1.5).softmax(-1).gather(-1, chosen)[..., 0].prod(1)
    made = decoder.generate(scorer, Request([prompt] * size, 3, None, batch_size=size, generator=generator(7)))
    index = {text: i for i, text in enumerate(texts)}
    counts = torch.bincount(torch.tensor([index[tuple(g.tokens)] for g in made]), minlength=len(texts))
    often = probability * size >= 5
    observed = [*counts[often].tolist(), int(counts[~often].sum())]
    expected = [*(probability[often] * size).tolist(), float(probability[~often].sum() * size)]
    assert often.sum() > 20 and len({g.nfe for g in made}) > 1  # some drafts are accepted, others are not
    assert chisquare(observed, expected).pvalue > 1e-3


def test_the_causal_mode_leaves_the_model_as_it_was(llama):
    scorer = denoiser(llama, "block", 4, False).train()
    AR().generate(scorer, Request(PROMPTS[:1], 2, None))
    assert scorer.training and llama.training and isinstance(scorer.pattern, Block)
    scorer.eval()
    SelfSpeculative().generate(scorer, Request(PROMPTS[:1], 2, None))
    assert not llama.training and isinstance(Causal(), PATTERNS["ar"])
