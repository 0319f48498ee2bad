"""The probability of a continuation: what decoding from left to right says, in any batch, of any pattern."""

import pytest
import torch
from common import CACHEABLE, MASK_ID, WITH_SHIFT, denoiser, everyday, pattern_of, shared
from torch.nn.functional import log_softmax

from dlm.attention.block import Block
from dlm.decoding.engine.request import Request
from dlm.decoding.prefix import Prefix
from dlm.evaluation.scores import has_blind_blocks, reveal, scores
from dlm.model.denoiser import Denoiser
from dlm.types import Rows, generator

PAIRS = [
    ([5, 6, 7], [8, 9]),
    ([4] * 10, [11, 12, 13, 14, 15, 16, 17]),
    ([9] * 5, [3]),
    ([8, 7] * 9, list(range(2, 21))),
]


def written_by_hand(scorer: Denoiser, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """log p of a continuation and whether each token is the most probable one: a forward for each token, over one row
    [context, earlier tokens, masks] that ends with the token's block (with the last one where nothing can be cached),
    by the predicate of decoding."""
    size, ids = scorer.pattern.block_size, context + continuation
    log_p, greedy = 0.0, True
    for i in range(len(context), len(ids)):
        end = (i if scorer.pattern.cacheable else len(ids) - 1) // size * size + size
        seen = ids[:i] + [MASK_ID] * (end - i)
        step = i // size * size if scorer.pattern.noisy_stream else end
        logits = decoding_logits(scorer, seen, step)
        row = i - 1 if scorer.token_shift else i
        log_p += log_softmax(logits[row], -1)[ids[i]].item()
        greedy &= logits[row].argmax().item() == ids[i]
    return log_p, greedy


def decoding_logits(scorer: Denoiser, ids: list[int], first_noisy: int) -> torch.Tensor:
    """The logits [L V] of a row whose finished blocks are clean, as in decoding."""
    position = torch.arange(len(ids))[None]
    clean = (position < first_noisy) if scorer.pattern.clean_stream else torch.zeros_like(position, dtype=torch.bool)
    rows = Rows(clean, torch.zeros_like(position), position)
    with torch.no_grad():
        return scorer.score(position[0], torch.tensor([ids]), position, scorer.masks(rows, rows), use_cache=False)


@pytest.mark.parametrize(("pattern", "token_shift"), WITH_SHIFT)
@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_a_score_is_that_of_a_forward_for_each_token_as_decoding_makes_it(pattern, token_shift, block_size, llama):
    scorer = denoiser(llama, pattern, block_size, token_shift)
    found = scores(scorer, PAIRS)
    for (context, continuation), score in zip(PAIRS, found, strict=True):
        log_p, greedy = written_by_hand(scorer, context, continuation)
        assert (score.log_p, score.is_greedy) == (pytest.approx(log_p, abs=1e-9), greedy)


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("pattern", ["block", "bidir", "ar"])
def test_a_score_depends_on_neither_the_batch_nor_the_order_nor_the_other_pairs(pattern, samples, llama):
    scorer = denoiser(llama, pattern, 4, True)
    pairs = [*PAIRS[:3], PAIRS[0], ([5], [6, 7, 8, 9])]
    alone = [scores(scorer, [pair], 1, samples)[0].log_p for pair in pairs]
    for batch_size in (1, 3, 16):
        assert [s.log_p for s in scores(scorer, pairs, batch_size, samples)] == pytest.approx(alone, abs=1e-9)
    backwards = scores(scorer, pairs[::-1], 16, samples)[::-1]
    assert [s.log_p for s in backwards] == pytest.approx(alone, abs=1e-9)
    assert alone[0] == alone[3] and len(set(alone)) == 4


@pytest.mark.parametrize(("pattern", "token_shift"), everyday(CACHEABLE, 4))
def test_what_decoding_one_token_at_a_time_writes_is_greedy_and_anything_else_is_not(pattern, token_shift, llama):
    scorer = denoiser(llama, pattern, 4, token_shift)
    prompts = [[5, 6, 7, 8, 9], [4, 3, 2]]
    made = Prefix(None, sliding=False).generate(scorer, Request(prompts, 9))
    written = [g.tokens for g in made]
    changed = [tokens[:-1] + [tokens[-1] % 50 + 2] for tokens in written]
    pairs = [*zip(prompts, written, strict=True), *zip(prompts, changed, strict=True)]
    found = scores(scorer, pairs)
    assert [s.is_greedy for s in found] == [True, True, False, False]
    assert [s.log_p for s in found[:2]] == pytest.approx(
        [torch.tensor(g.confidence, dtype=torch.float64).log().sum().item() for g in made], abs=1e-4
    )


def test_a_text_of_any_length_takes_as_many_noisy_versions_as_a_block_has_tokens():
    model = shared("llama")
    continuation = list(range(2, 40))
    block = denoiser(model, "block", 4, True)
    assert scores(block, [([5], continuation)])[0].nfe == 4
    assert scores(denoiser(model, "block_noisy", 4, True), [([5], continuation)])[0].nfe == len(continuation)
    assert scores(denoiser(model, "ar", 1, True), [([5], continuation)])[0].nfe == 1
    assert scores(block, [([5], [6, 7])])[0].nfe == 2
    assert has_blind_blocks(Block(4)) and not has_blind_blocks(pattern_of("block_noisy", 4))


def test_a_block_is_revealed_from_left_to_right_behind_its_context(llama):
    reading = reveal(denoiser(llama, "block", 8, False), 0, [5] * 6, [7, 8, 9])
    assert [row.nonzero().flatten().tolist() for row in reading.weight] == [[8], [6], [7]]
    hidden = [(row == MASK_ID).nonzero().flatten().tolist() for row in reading.xt]
    rest = list(range(9, 16))  # of the last block, as in decoding
    assert hidden == [[6, 7, 8, *rest], [6, 7, *rest], [7, *rest]]


@pytest.mark.parametrize("pattern", ["block", "bidir"])
def test_the_bound_of_a_model_without_context_is_the_exact_score_in_every_draw(pattern, llama):
    """Where no prediction depends on another and all tokens are alike, every order and every draw says the same."""
    scorer = denoiser(llama, pattern, 4, False)
    logits = torch.randn(61, generator=generator(1), dtype=torch.float64)
    scorer.logits = lambda hidden: logits.expand(len(hidden), -1)
    pair = ([5, 6], [9] * 6)
    for samples in (1, 3):
        bound = scores(scorer, [pair], samples=samples)[0]
        assert bound.log_p == pytest.approx(6 * log_softmax(logits, -1)[9].item(), rel=1e-6) and not bound.is_greedy


def test_with_blocks_of_one_token_the_bound_is_the_exact_score(llama):
    scorer = denoiser(llama, "block", 1, True)
    assert scores(scorer, PAIRS, samples=5) == scores(scorer, PAIRS)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([5], []), "pair 2 has an empty continuation: give at least one token"),
        (([], [5]), "pair 2 has an empty context, and the token shift scores from it: begin with BOS"),
        (([5], [MASK_ID]), "pair 2 holds the mask token .id 60.: it stands for no text"),
    ],
)
def test_a_pair_that_has_no_score_is_refused_by_number(pair, message, llama):
    with pytest.raises(ValueError, match=message):
        scores(denoiser(llama, "block", 4, True), [PAIRS[0], pair])
