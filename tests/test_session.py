"""Sequences that join and leave a session between forwards: each becomes what it becomes alone."""

from dataclasses import replace

import pytest
from common import EOS_ID, denoiser, everyday

from dlm.decoding.ar import AR
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.remask import Remask
from dlm.decoding.self_speculative import SelfSpeculative
from dlm.decoding.threshold import Threshold
from dlm.types import generator

PROMPTS = [[5, 6, 7], [9] * 7, [11, 12], [21, 22, 23, 24, 25, 26, 27, 28, 29], [31], [5, 6, 7], [40, 3, 2, 8]]


def requests(temperatures=(0.0, 0.8)):
    """Requests that differ in everything: (request, temperature, top_p)."""
    found = []
    for n, prompt in enumerate(PROMPTS):
        stop = (lambda tokens: sum(tokens) % 5 == 0) if n % 3 == 1 else None
        request = Request([prompt], 6 + 5 * n, (EOS_ID, 17), generator=generator(n), stop=stop)
        found.append((request, temperatures[n % len(temperatures)], 0.9 if n % 4 == 3 else 1.0))
    return found


def rule_of(decoder, n: int, temperature: float, top_p: float):
    own = decoder.sampling(temperature, top_p)
    return (own.at(0.2 + 0.1 * n) if own.threshold is not None else own).rule


def alone(decoder, scorer, asked):
    """What the engine gives for every request by itself."""
    made = []
    for n, (request, *drawn) in enumerate(asked):
        own = decoder.sampling(*drawn)
        own = own.at(0.2 + 0.1 * n) if own.threshold is not None else own
        made.append(own.generate(scorer, replace(request, generator=generator(n)))[0])
    return made


def together(decoder, scorer, asked, removed=()):
    """The same of a session that they join at different times, some in one forward, and some leave early."""
    session, waiting, number, made, forwards = decoder.session(scorer), list(enumerate(asked)), {}, {}, 0
    while waiting or session:
        for n, (request, *drawn) in [waiting.pop(0) for _ in range(min(len(waiting), 1 + forwards % 2))]:
            number[session.add(request, rule_of(decoder, n, *drawn))[0]] = n
        session.step()
        forwards += 1
        made |= {number[ticket]: g for ticket, g in session.harvest().items()}
        for ticket in [t for t, _, _ in session.places() if number[t] in removed and forwards > 3]:
            session.remove(ticket)
    return [made.get(n) for n in range(len(asked))], forwards


@pytest.mark.parametrize("temperatures", [(0.0, 0.8), pytest.param((0.0,), marks=pytest.mark.grid)])
@pytest.mark.parametrize(
    ("decoder", "pattern", "token_shift"),
    everyday(
        [
            (Threshold(0.5), "block", True),
            (AR(), "block", False),
            (SelfSpeculative(), "block", True),
            (Remask(0.5, 0.4), "block_noisy", False),
            (Threshold(0.5), "bidir", False),
            (Threshold(0.5, sliding=True), "block", False),
        ],
        4,
    ),
)
def test_a_sequence_becomes_what_it_becomes_alone(llama, decoder, pattern, token_shift, temperatures):
    """Whoever else is there, with other thresholds, temperatures, stops and lengths, and whenever they came."""
    scorer, asked = denoiser(llama, pattern, 4, token_shift), requests(temperatures)
    assert together(decoder, scorer, asked)[0] == alone(decoder, scorer, asked)


def test_a_sequence_that_is_removed_changes_nothing_for_the_others(llama):
    scorer, asked = denoiser(llama, "block", 4, False), requests()
    expected = alone(Threshold(0.5), scorer, asked)
    made, _ = together(Threshold(0.5), scorer, asked, removed=(1, 4, 6))
    assert [n for n, g in enumerate(made) if g is None]
    assert all(g is None or g == expected[n] for n, g in enumerate(made))


@pytest.mark.parametrize("decoder", [Threshold(0.5), SelfSpeculative()])
def test_one_that_leaves_before_its_first_forward_leaves_nothing_behind(llama, decoder):
    scorer, asked = denoiser(llama, "block", 4, True), requests()
    session = decoder.session(scorer)
    (stays,), (leaves,) = (session.add(asked[n][0], decoder.rule) for n in (0, 1))
    session.remove(leaves)
    made = {}
    while session:
        session.step()
        made |= session.harvest()
    assert made == {stays: decoder.generate(scorer, asked[0][0])[0]}
    session.remove(*session.add(asked[2][0], decoder.rule))
    (later,) = session.add(asked[3][0], decoder.rule)
    while session:
        session.step()
        made |= session.harvest()
    assert made.keys() == {stays, later} and made[later] == decoder.generate(scorer, asked[3][0])[0]


def test_sequences_share_their_forwards(llama):
    """Sixteen that come together take the forwards of the longest, not those of all."""
    scorer = denoiser(llama, "block", 4, False)
    asked = [(Request([[5 + n] * 5], 24, EOS_ID), 0.0, 1.0) for n in range(16)]
    session, forwards = Fixed(2).session(scorer), 0
    for request, *_ in asked:
        session.add(request, Fixed(2).rule)
    made = {}
    while session:
        session.step()
        forwards += 1
        made |= session.harvest()
    assert forwards == max(g.nfe for g in made.values()) and sum(g.nfe for g in made.values()) > 8 * forwards


@pytest.mark.parametrize(
    ("decoder", "pattern", "token_shift"),
    everyday(
        [
            (Threshold(0.5), "block", True),
            (AR(), "block", False),
            (Threshold(0.5), "block", False),
            (Threshold(0.5), "block_noisy", True),
        ],
        2,
    ),
)
def test_a_prompt_that_begins_as_one_that_has_left_is_not_read_again(llama, decoder, pattern, token_shift):
    """Two turns: the second prompt is the first with its answer and more. Beside it comes one that nobody knows."""
    scorer = denoiser(llama, pattern, 4, token_shift)
    session = decoder.session(scorer, kept_tokens=100)

    def answers(*prompts):
        tickets = [session.add(Request([prompt], 14, ()), decoder.rule)[0] for prompt in prompts]
        made = {}
        while session:
            session.step()
            made |= session.harvest()
        return [made[ticket] for ticket in tickets]

    first = [7, 8, 9, 10, 11, 12]
    (answer,) = answers(first)
    prompts = [[*first, *answer.tokens, 30, 31], [50, 51, 52, 53, 54]]
    again, new = answers(*prompts)
    alone = [decoder.generate(scorer, Request([prompt], 14, ()))[0] for prompt in prompts]
    assert new == alone[1] and replace(again, rows=0) == replace(alone[0], rows=0)
    size = session.denoiser.pattern.block_size
    known = (len(first) + len(answer.tokens) - 1) // size * size
    assert again.rows == alone[0].rows - known
    whole = [*first, *answer.tokens][:16]  # all of it is known; with the shift, its last token is read again
    (known,) = answers(whole)
    expected = decoder.generate(scorer, Request([whole], 14, ()))[0]
    assert replace(known, rows=0) == replace(expected, rows=0) and known.rows < expected.rows
    answers([7, 8, 9, 11, 12, 13, 14, 15])
    assert sum(map(len, session.prefixes.kept)) <= 100


def test_no_more_tokens_are_kept_than_may_be_and_the_least_used_go_first(llama):
    scorer = denoiser(llama, "block", 4, False)
    session = Fixed(4).session(scorer, kept_tokens=40)
    for n in range(6):
        session.add(Request([[10 + n] * 12], 4, ()), Fixed(4).rule)
        while session:
            session.step()
            session.harvest()
    kept = [tokens[0] for tokens in session.prefixes.kept]
    assert kept == [13, 14, 15] and sum(map(len, session.prefixes.kept)) <= 40


def test_a_session_refuses_what_one_canvas_cannot_decode(llama):
    session = Threshold(0.5).session(denoiser(llama, "block", 4, False))
    session.add(Request([[5]], 4, EOS_ID), Threshold(0.5).rule)
    with pytest.raises(ValueError, match=r"remask_below 0.5 .* must be those of the session"):
        session.add(Request([[5]], 4, EOS_ID), Remask(0.5, 0.5).rule)
    with pytest.raises(ValueError, match=r"eos_ids \(7,\) must be those"):
        session.add(Request([[5]], 4, 7), Threshold(0.5).rule)
