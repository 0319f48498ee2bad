"""Soft parallel decoding: its embeddings, its limits, and equality with a naive loop without a cache."""

import itertools
from collections import Counter

import pytest
import torch
from common import EOS_ID, MASK_ID, config, denoiser, everyday, let_it_say
from naive_blocks import scores

from dlm.config.build import make
from dlm.decoding.engine.request import Request
from dlm.decoding.soft import Soft, soft_embedding

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]
NEW, SIZE = 14, 4
LIKED = {False: 59, True: 24}  # the token that these models like best, without and with the shift: their EOS


@pytest.fixture(params=itertools.product(["block_noisy", "block"], [False, True]), ids=str)
def scorer(request, llama):
    return denoiser(llama, request.param[0], SIZE, request.param[1])


def result(made):
    return [(g.tokens, g.nfe) for g in made]


def test_a_soft_embedding_goes_from_the_mask_to_the_token_and_so_does_its_norm():
    token, mask = torch.randn(5, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    assert torch.equal(soft_embedding(token, mask, torch.ones(5)), token)
    torch.testing.assert_close(soft_embedding(token, mask, torch.zeros(5)), mask.expand(5, -1))
    share = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    soft = soft_embedding(token, mask, share)
    torch.testing.assert_close(soft.norm(dim=1), share * token.norm(dim=1) + (1 - share) * mask.norm())
    blend = share[:, None] * token + (1 - share[:, None]) * mask
    torch.testing.assert_close(torch.cosine_similarity(soft, blend), torch.ones_like(share))


def test_a_soft_embedding_by_hand():
    """Half of [3, 0] and half of [0, 4] is [1.5, 2] of norm 2.5, scaled to the norm 3.5."""
    soft = soft_embedding(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.tensor(0.5))
    torch.testing.assert_close(soft, torch.tensor([2.1, 2.8]))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, [True, False, True, False, False]),
        (0.55, [True, False, False, False, False]),
        (0.95, [True, False, False, False, False]),
        (0.0, [True, False, True, True, True]),
    ],
)
def test_the_longest_confident_prefix_of_the_masked_tokens_is_decoded(threshold, expected):
    """The second one is decoded already; the last is sure, but behind one that is not."""
    confidence = torch.tensor([[0.9, -1.0, 0.5, 0.4, 0.9]])
    assert Soft(threshold, 0.9).rule.select(confidence, confidence).tolist() == [expected]


@pytest.mark.parametrize("ends", [False, True])
def test_with_hard_embeddings_and_no_revision_it_goes_from_left_to_right_one_token_per_forward(scorer, ends):
    eos = LIKED[scorer.token_shift] if ends else None
    made = Soft(2.0, 0.9, revise=False, hard=True).generate(scorer, Request(PROMPTS, NEW, eos))
    assert result(made) == [left_to_right(scorer, prompt, eos) for prompt in PROMPTS]


def left_to_right(scorer, prompt, eos):
    """The leftmost masked token of a whole block in each forward."""
    x = list(prompt)
    while len(x) < len(prompt) + NEW and x[-1] != eos:
        start = len(x) // SIZE * SIZE
        x.append(scores(scorer, x + [MASK_ID] * (start + SIZE - len(x)), start)[len(x)][0])
    return x[len(prompt) :], len(x) - len(prompt)


def test_with_thresholds_of_zero_a_block_takes_one_forward(scorer):
    """All of it is decoded at once; where nothing is good enough it is read again until it does not change."""
    for prompt, g in zip(PROMPTS, Soft(0.0, 0.0).generate(scorer, Request(PROMPTS, NEW, None)), strict=True):
        blocks = [position // SIZE for position in range(len(prompt), len(prompt) + NEW)]
        assert g.step == [b - blocks[0] + 1 for b in blocks] and g.nfe == blocks[-1] - blocks[0] + 1
    again = Soft(0.0, 2.0).generate(scorer, Request(PROMPTS, NEW, None))
    assert all(g.nfe >= 2 * blocks[-1] for g, blocks in zip(again, [[3], [3], [4], [3], [3]], strict=True))


SETTINGS = {  # τ_dec, τ_acc
    "the paper's": Soft(0.5, 0.9),
    "low": Soft(0.2, 0.4),
    "the whole block at once": Soft(0.0, 0.9),
    "more than is needed to accept": Soft(0.6, 0.3),
    "by change alone": Soft(0.3, 2.0),
    "hard": Soft(0.2, 0.6, hard=True),
    "no revision": Soft(0.2, 0.6, revise=False),
    "two forwards": Soft(0.5, 0.9, max_forwards=2),
}


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("decoder", SETTINGS.values(), ids=SETTINGS.keys())
def test_it_equals_a_naive_loop_without_a_cache(scorer, decoder, ends):
    eos = LIKED[scorer.token_shift] if ends else None
    made = decoder.generate(scorer, Request(PROMPTS, NEW, eos))
    assert result(made) == [naive(scorer, prompt, decoder, eos) for prompt in PROMPTS]


@pytest.mark.parametrize("pattern", ["block_noisy", "block"])
def test_on_other_architectures_it_equals_a_naive_loop_too(model, pattern):
    """Embeddings that are scaled, windows."""
    scorer, decoder = denoiser(model, pattern, SIZE, False), Soft(0.3, 0.8)
    assert result(decoder.generate(scorer, Request(PROMPTS, NEW, None))) == [
        naive(scorer, p, decoder, None) for p in PROMPTS
    ]


@torch.no_grad()
def naive(scorer, prompt, decoder, eos):
    """One sequence, everything read again in every forward."""
    embed, x, nfe = scorer.model.get_input_embeddings(), list(prompt), 0
    wanted = len(prompt) + NEW
    for start in range(len(prompt) // SIZE * SIZE, wanted, SIZE):
        x += [MASK_ID] * (start + SIZE - len(x))
        new, sure = range(max(start, len(prompt)), start + SIZE), {}
        for forward in range(1, (decoder.loop.max_forwards or SIZE) + 1):
            nfe += 1
            read = embed(torch.tensor(x))
            for i in sure if not decoder.loop.hard else ():
                hard, mask = embed(torch.tensor([x[i], MASK_ID]))
                blend = sure[i] * hard + (1 - sure[i]) * mask
                read[i] = blend / blend.norm() * (sure[i] * hard.norm() + (1 - sure[i]) * mask.norm())
            score = scores(scorer, x, start, read)
            masked = [i for i in new if x[i] == MASK_ID]
            unsure = [n for n, i in enumerate(masked) if score[i][1] < decoder.threshold]
            prefix = masked[: max(1, min(unsure, default=SIZE))]
            last = forward == (decoder.loop.max_forwards or SIZE)
            chosen = (masked if last else prefix) + (list(sure) if decoder.loop.revise else [])
            changed = [i for i in chosen if x[i] != score[i][0]]
            for i in chosen:
                x[i], sure[i] = score[i]
            ends = [i for i in new if x[i] == eos]
            waited = [i for i in new if i <= min([*ends, wanted - 1])]
            stable = not decoder.loop.revise or not set(changed) & set(waited)
            good = all(score[i][1] >= decoder.loop.accept for i in waited)
            if last or (all(x[i] != MASK_ID for i in waited) and (stable or good)):
                break
        if ends:
            break
    return x[len(prompt) : waited[-1] + 1], nfe


@pytest.mark.parametrize("decoder", everyday(SETTINGS.values(), 3))
def test_a_ragged_batch_gives_the_tokens_and_the_nfe_of_single_prompts(scorer, decoder):
    """Blocks settle sequence by sequence, so a batch gives what single prompts give (I5)."""
    eos = LIKED[scorer.token_shift]
    single = [decoder.generate(scorer, Request([prompt], NEW, eos))[0] for prompt in PROMPTS]
    for batch_size in (2, 8):
        assert decoder.generate(scorer, Request(PROMPTS, NEW, eos, batch_size=batch_size)) == single


def test_revision_and_soft_embeddings_change_what_is_decoded(scorer):
    """Else the tests above would pass without them."""
    settings = [Soft(0.2, 2.0), Soft(0.2, 2.0, hard=True), Soft(0.2, 2.0, revise=False)]
    assert len({repr(result(d.generate(scorer, Request(PROMPTS, NEW, None)))) for d in settings}) == 3


@pytest.mark.trains
@pytest.mark.parametrize("token_shift", everyday([False, True]))
@pytest.mark.parametrize("pattern", everyday(["block", "block_noisy"]))
def test_a_block_that_has_settled_is_a_fixed_point(llama, pattern, token_shift):
    """With hard embeddings: its tokens are what the model predicts from them."""
    scorer, starts, found = denoiser(llama, pattern, 2, token_shift), [], 0
    decoder = Soft(0.3, 2.0, hard=True, max_forwards=10)
    for first in range(5, 20):
        starts[:] = [2]
        (made,) = decoder.generate(
            scorer, Request([[first, 4]], 6, None, on_step=lambda c: starts.append(int(c.start[0])))
        )
        x, forwards = [first, 4] + made.tokens, Counter(starts[:-1])
        for start in (2, 4, 6):
            if forwards[start] < 10:  # else it was going round in a circle
                score, found = scores(scorer, x[: start + 2], start), found + 1
                assert [score[start][0], score[start + 1][0]] == x[start : start + 2]
    assert found


def test_no_block_ends_with_masks_whatever_the_thresholds(scorer):
    """The released rule stops when all are sure enough, masked or not."""
    for decoder in (Soft(2.0, 0.0), Soft(0.9, 0.1), Soft(2.0, 0.9, max_forwards=1)):
        for g in decoder.generate(scorer, Request(PROMPTS, NEW, None)):
            assert len(g.tokens) == NEW and MASK_ID not in g.tokens


def test_a_finished_block_is_written_as_tokens_with_the_first_forward_of_the_next(llama):
    """Every forward counts and denoises. The first reads the prompt too, the third the block that is done."""
    scorer, read = denoiser(llama, "block", SIZE, False), []
    handle = llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    try:
        (made,) = Soft(0.0, 2.0, max_forwards=2).generate(scorer, Request([[5, 6, 7, 8]], 8, None))
    finally:
        handle.remove()
    assert [len(r) for r in read] == [8, 4, 8, 4] and (made.nfe, made.rows) == (4, 24)
    embed, masks = llama.get_input_embeddings(), torch.full((4,), MASK_ID)
    assert torch.equal(read[0], embed(torch.cat([torch.tensor([5, 6, 7, 8]), masks])))
    assert torch.equal(read[2], embed(torch.cat([torch.tensor(made.tokens[:4]), masks])))


def test_an_eos_ends_an_answer_only_when_its_block_has_settled(llama):
    """The model first says EOS, then thinks better of it."""
    scorer, said = denoiser(llama, "block", SIZE, False), iter([EOS_ID, 9, 9, EOS_ID, EOS_ID])

    def score(scored, *args, **kwargs):
        return torch.nn.functional.one_hot(torch.full((len(scored),), next(said)), 61) * 5.0

    let_it_say(scorer, score)
    (made,) = Soft(0.0, 2.0).generate(scorer, Request([[5, 6, 7, 8]], 8, EOS_ID))
    assert made.tokens == [9] * 4 + [EOS_ID] and made.step == [2] * 4 + [4]
    assert made.nfe == 5  # a forward without a change ends each block


def test_a_stop_ends_a_sequence_at_the_end_of_a_block(llama):
    scorer, decoder = denoiser(llama, "block", SIZE, False), Soft(0.2, 0.6)
    free = decoder.generate(scorer, Request([PROMPTS[0]], 15, None))[0].tokens
    stopped = decoder.generate(scorer, Request([PROMPTS[0]], 15, None, stop=lambda tokens: free[4] in tokens))[0].tokens
    assert stopped == free[: len(stopped)] and 5 <= len(stopped) < 15


def test_attention_without_cacheable_noisy_blocks_and_bad_values_are_refused(llama):
    decoder = Soft(0.5, 0.9)
    with pytest.raises(ValueError, match="Soft cannot decode under Bidir: .* Bidir lets blocks see later ones"):
        decoder.generate(denoiser(llama, "bidir", SIZE, False), Request(PROMPTS, NEW, EOS_ID))
    with pytest.raises(ValueError, match="AR denoises no blocks"):
        decoder.generate(denoiser(llama, "ar", 1, True), Request(PROMPTS, NEW, EOS_ID))
    for name, value, limit in (
        ("threshold", -0.1, ">= 0"),
        ("accept", -1.0, ">= 0"),
        ("max_forwards", 0, "at least 1"),
    ):
        with pytest.raises(ValueError, match=f"decoding.{name} {value} must be {limit}"):
            make(config("decoding=soft", f"decoding.{name}={value}").decoding)
