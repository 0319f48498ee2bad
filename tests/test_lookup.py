"""Prompt lookup: AR's tokens whatever is looked up, fewer forwards where text repeats, and what a draft costs."""

import pytest
import torch
from common import EOS_ID, PATTERNS, VOCAB, denoiser

from dlm.decoding.ar import AR
from dlm.decoding.engine.request import Request
from dlm.decoding.lookup import Lookup, continuation
from dlm.model.denoiser import Denoiser
from dlm.types import generator

# Texts that repeat themselves, so that there is something to look up from the first forward on.
PROMPTS = [[5, 6, 7, 5, 6], [11], [20, 21, 20, 22, 20, 21, 20, 22, 21], [30, 30, 30, 30], [40, 41]]
NEW = 14


def always(token):
    """A head that says one token, whatever it reads."""

    def logits(self, hidden):
        return torch.nn.functional.one_hot(torch.full((len(hidden),), token), VOCAB).double() * 20

    return logits


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("length", "ngram"), [(1, 1), (4, 2), (10, 3)])
def test_lookup_is_ar_decoding_token_for_token(llama, pattern, length, ngram):
    scorer = denoiser(llama, pattern, 4, pattern == "ar")
    expected = AR().generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    made = Lookup(length, ngram).generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    assert [g.tokens for g in made] == [g.tokens for g in expected]
    assert all(g.nfe <= e.nfe for g, e in zip(made, expected, strict=True))
    assert all(g.confidence == pytest.approx(e.confidence) for g, e in zip(made, expected, strict=True))


def test_on_every_architecture_also_with_sliding_windows_of_attention(model):
    scorer = denoiser(model, "ar", 1, True)
    expected = AR().generate(scorer, Request(PROMPTS, NEW, EOS_ID))
    assert [g.tokens for g in Lookup(5, 2).generate(scorer, Request(PROMPTS, NEW, EOS_ID))] == [
        g.tokens for g in expected
    ]


@pytest.mark.trains
@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_ragged_batch_gives_what_single_prompts_give(llama, batch_size):
    """Drafts of different lengths side by side give the tokens, forwards and rows of single prompts (I5)."""
    scorer, decoder = denoiser(llama, "block", 4, False), Lookup(5, 2)
    single = [decoder.generate(scorer, Request([prompt], NEW, EOS_ID))[0] for prompt in PROMPTS]
    batched = decoder.generate(scorer, Request(PROMPTS, NEW, EOS_ID, batch_size=batch_size))
    for a, b in zip(batched, single, strict=True):
        assert (a.tokens, a.nfe, a.rows, a.step) == (b.tokens, b.nfe, b.rows, b.step)
    assert len({g.rows - len(p) for g, p in zip(single, PROMPTS, strict=True)}) > 1


def test_text_that_repeats_takes_a_forward_for_every_draft_and_no_more_rows_than_ar(llama, monkeypatch):
    """Drafts of 4 are all accepted, with AR's own token behind them: 15 tokens in 3 forwards."""
    monkeypatch.setattr(Denoiser, "logits", always(7))
    scorer = denoiser(llama, "ar", 1, True)
    (made,) = Lookup(4, 3).generate(scorer, Request([[5, 7, 7]], 15, None))
    (ar,) = AR().generate(scorer, Request([[5, 7, 7]], 15, None))
    assert (made.tokens, made.nfe, made.step) == (ar.tokens, 3, [1] * 5 + [2] * 5 + [3] * 5)
    assert made.rows == ar.rows == 3 + 14


def test_a_draft_that_is_refused_is_rows_that_were_read(llama, monkeypatch):
    """8 9 8 is followed by 9 8 9 8, says the text: all refused, 3 + 4 rows. Then 7, not found: 1 row. Then 7 7: 1 + 4.
    The last token is never drafted: 1."""
    monkeypatch.setattr(Denoiser, "logits", always(7))
    (made,) = Lookup(4, 3).generate(denoiser(llama, "ar", 1, True), Request([[8, 9, 8]], 8, None))
    assert (made.nfe, made.rows, made.step) == (4, 7 + 1 + 5 + 1, [1, 2, 3, 3, 3, 3, 3, 4])


def test_forwards_of_the_network_are_the_nfe_and_their_rows_the_rows(llama):
    scorer, read = denoiser(llama, "block", 4, False), []
    handle = llama.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    (made,) = Lookup(5, 2).generate(scorer, Request(PROMPTS[2:3], NEW, None))
    handle.remove()
    assert (len(read), sum(read)) == (made.nfe, made.rows)


def test_the_continuation_is_that_of_the_most_recent_of_the_longest_matches():
    """Against a search by hand, of short texts over three letters; what lies behind the end is never looked at."""
    x = torch.randint(3, (400, 12), generator=generator(0))
    end = torch.randint(1, 12, (400,), generator=generator(1))
    for ngram in (1, 2, 3):
        found = continuation(x, end, ngram).tolist()
        assert found == [by_hand(row[:n], ngram) for row, n in zip(x.tolist(), end.tolist(), strict=True)]
        assert len(set(found)) > 5


def by_hand(text, ngram):
    for n in range(min(ngram, len(text) - 1), 0, -1):
        for begin in range(len(text) - n - 1, -1, -1):
            if text[begin : begin + n] == text[-n:]:
                return begin + n
    return -1


@pytest.mark.parametrize(("length", "ngram"), [(0, 3), (10, 0)])
def test_nothing_to_draft_or_to_find_is_refused(length, ngram):
    with pytest.raises(ValueError, match=f"length {length} and decoding.ngram {ngram} must be at least 1"):
        Lookup(length, ngram)
