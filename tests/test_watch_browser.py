"""The page that plays answers, from a file and from a server, in a real browser: what it shows is what the engine made.

Needs playwright (`pip install '.[browser]'`) and a Chromium."""

import json
import re
import threading

import pytest
from serving import by_engine, speakers, visited

from dlm.decoding.engine.session import Session
from dlm.watch.page import page
from dlm.watch.speaker import trace
from dlm.watch.trace import Race, Recorder

pytestmark = [pytest.mark.slow, pytest.mark.trains]

PROMPTS, NEW = ["reverse:ABCDEFG=", '</script><b>"quoted"\n\u2028line'], 24
# Of each lane: the tokens that are committed, and the forward under each, by their places.
SHOWN = """[...document.querySelectorAll('.lane')].map(lane => Object.fromEntries(
  [...lane.querySelectorAll('.cell')].map((cell, i) => [i, cell]).filter(([i, cell]) => cell.matches('.committed'))
    .map(([i, cell]) => [i, ['b', 'small'].map(part => cell.querySelector(part).textContent)])))"""
LABELLED = """[...document.querySelectorAll('button, input, select, textarea')].filter(e => e.getClientRects().length &&
  !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"""
WIDE = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def by_mode():
    return speakers()


@pytest.fixture(scope="module")
def told(by_mode):
    """The races of a file: the untrained dLM and its parent."""
    races = []
    for prompt in PROMPTS:
        traces = []
        for speaker in (by_mode["diffusion"], by_mode["parent"]):
            recorder, ids = Recorder(speaker.tokenizer), speaker.encode(prompt, NEW)
            traces.append(trace(speaker, ids, recorder.steps, speaker.answer(ids, NEW, [], 0, recorder.see)))
        races.append(Race(prompt, {"run": "made", "stop": []}, traces))
    return races


@pytest.fixture
def opened(browser, told, tmp_path):
    """Opens the page of the races in a width and colour scheme; what it complains about, and what it asks for, is
    none."""
    path, pages, complaints = tmp_path / "answers.html", [], []
    path.write_text(page(told), encoding="utf-8")

    def open_page(width=1200, scheme="light", **options):
        made = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        made.set_default_timeout(180_000)  # a machine may be busy
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.on("console", lambda message: complaints.append(message.text))
        made.on("request", lambda asked: complaints.extend([asked.url] if asked.url != path.as_uri() else []))
        made.goto(path.as_uri())
        pages.append(made)
        return made

    yield open_page
    for made in pages:
        made.close()
    assert complaints == []


def committed(told_trace, forward: int) -> dict[str, list[str]]:
    """What a lane shows after a forward, from the records: the text and the forward of each committed token."""
    begin, held = len(told_trace.opening.prompt_tokens), {}
    spaces = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
    for step in told_trace.steps[:forward]:
        for position, text in zip(step.committed.positions, step.committed.texts, strict=True):
            held[str(position - begin)] = [text.translate(spaces), str(step.forward)]
    return held


def slide(made, forward: int) -> None:
    """Move the slider as a hand does."""
    made.locator("#slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); }",
        str(forward),
    )


@pytest.mark.parametrize("width", [1200, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_as_wide_as_the_window_and_has_the_colours_of_the_scheme(opened, width, scheme):
    made = opened(width, scheme)
    made.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert made.evaluate(WIDE) <= width
    ground, ink = made.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
    assert (light[0] > light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 400
    assert made.evaluate(LABELLED) == []


def test_the_slider_shows_at_every_forward_what_both_models_had_committed(opened, told):
    made, traces = opened(), told[0].traces
    last = max(one.closing.nfe for one in traces)
    assert made.get_attribute("#slider", "max") == str(last)
    for forward in range(last + 1):
        slide(made, forward)
        assert made.evaluate(SHOWN) == [committed(one, forward) for one in traces]
        assert made.inner_text("#track label") == f"forward {forward} of {last}"
    for lane, one in zip(made.locator(".lane").all(), traces, strict=True):
        assert lane.locator(".cell").count() == one.closing.tokens
        assert f"{one.closing.tokens} tokens in {one.closing.nfe} forwards" in lane.inner_text()


def test_masked_tokens_show_the_guess_of_the_last_forward_unless_guesses_are_hidden(opened, told):
    made, dlm = opened(), told[0].traces[0]
    forward = next(step.forward for step in dlm.steps if step.guesses.positions)
    slide(made, forward)
    guesses = made.locator(".lane").first.locator(".cell.masked.guessed b")
    spaces = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
    assert guesses.all_inner_texts() == [text.translate(spaces) for text in dlm.steps[forward - 1].guesses.texts]
    made.uncheck("#guesses")
    assert guesses.count() == 0


def test_keys_play_step_and_reach_every_token(opened, told):
    made = opened()
    last = made.evaluate("player.most()")
    made.keyboard.press("Home")
    assert made.evaluate("player.place") == 0
    for _ in range(3):
        made.keyboard.press("ArrowRight")
    made.keyboard.press("ArrowLeft")
    assert made.evaluate("player.place") == 2
    assert made.inner_text("#said").startswith(f"forward 2 of {last}: diffusion ")
    made.select_option("#speed", "30")
    made.evaluate("document.activeElement.blur()")
    made.keyboard.press("Space")
    assert made.get_attribute("#play", "aria-label") == "Pause"
    made.wait_for_selector("#play[aria-label=Play]")
    assert made.evaluate("player.place") == last
    made.focus(".lane .cells [tabindex='0']")
    made.keyboard.press("ArrowRight")
    assert made.evaluate("document.activeElement === document.querySelectorAll('.lane .cell')[1]")
    assert made.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert made.inner_text("#token h2") == "Token 2"
    made.focus("#slider")
    made.keyboard.press("ArrowLeft")
    assert made.evaluate("player.place") == last - 1


def test_a_chosen_token_tells_what_every_forward_made_of_it(opened, told):
    made, dlm = opened(), told[0].traces[0]
    begin = len(dlm.opening.prompt_tokens)
    position = next(p for step in dlm.steps for p in step.guesses.positions)
    made.locator(".lane").first.locator(".cell").nth(position - begin).click()
    told_of = made.locator(".history").first.locator("li").all_inner_texts()
    expected = []
    for step in dlm.steps:
        for said, kind in ((step.guesses, "guess"), (step.committed, "committed")):
            if position in said.positions:
                expected.append((step.forward, said.confidences[said.positions.index(position)], kind))
    assert len(told_of) == len(expected) > 1
    for text, (forward, confidence, kind) in zip(told_of, expected, strict=True):
        assert text.startswith(f"forward {forward}") and f"{confidence:.3f}" in text and text.endswith(kind)


def test_a_race_by_seconds_shows_what_each_model_had_by_then(opened, told):
    made, traces = opened(), told[0].traces
    made.select_option("#axis", "seconds")
    time = traces[0].steps[1].seconds
    slide(made, time)
    by_then = [sum(step.seconds <= time + 1e-9 for step in one.steps) for one in traces]
    assert made.evaluate(SHOWN) == [committed(one, count) for one, count in zip(traces, by_then, strict=True)]


def test_the_other_prompt_is_shown_as_text_whatever_is_in_it(opened, told):
    made = opened()
    made.locator("#races button").nth(1).click()
    assert made.evaluate("document.querySelector('#prompt p').textContent") == PROMPTS[1]
    assert made.locator("#prompt b").count() == 0
    assert made.evaluate(SHOWN) == [committed(one, one.closing.nfe) for one in told[1].traces]


def test_colours_are_no_more_than_a_help(opened):
    """Confidence is the length of a bar as well, the forward a number, the model a shape."""
    made = opened()
    bars = made.evaluate(
        "[...document.querySelectorAll('.cell.committed')].map(c => c.style.getPropertyValue('--sure'))"
    )
    confidences = made.evaluate(
        "player.lanes.flatMap(l => replay(l.trace, 999).map(c => `${Math.round(100 * c.confidence)}%`))"
    )
    assert bars == confidences and len({*bars}) > 2
    assert made.locator(".marks.n0 rect").count() and made.locator(".marks.n1 circle").count()
    assert not made.locator(".marks.n0 circle").count() and not made.locator(".marks.n1 rect").count()


@pytest.fixture
def metered(monkeypatch):
    """Forwards of the server that wait until they may go on: `release(n)` lets n of them."""
    may, step = threading.Semaphore(0), Session.step
    monkeypatch.setattr(Session, "step", lambda self: (may.acquire(timeout=10), step(self)))
    yield may.release
    may.release(10_000)


def test_a_typed_prompt_is_denoised_as_its_forwards_come_and_equals_the_engines_answer(browser, by_mode, metered):
    with visited(browser, by_mode) as made:
        made.fill("#text", PROMPTS[0])
        made.click("#decoder summary")
        made.fill("[name=max_tokens]", str(NEW))
        made.fill("[name=threshold]", "0.2")
        made.press("#text", "Enter")
        counts = []
        for _ in range(4):
            metered(2)  # one of each model
            made.wait_for_function(f"document.querySelectorAll('.cell.committed').length > {(counts or [0])[-1]}")
            counts.append(made.locator(".cell.committed").count())
        assert counts == sorted({*counts}) and made.is_visible("#stop") and made.is_hidden("#score")
        metered(10_000)
        made.wait_for_selector("#score:not([hidden])")
        for index, (mode, settings) in enumerate([("diffusion", {"threshold": 0.2}), ("parent", {})]):
            expected = by_engine(by_mode[mode], PROMPTS[0], NEW, **settings)
            generation = expected.generation
            found = made.evaluate(f"races[0].traces[{index}]")
            assert (found["closing"]["text"], found["closing"]["nfe"]) == (expected.text, generation.nfe)
            held = made.evaluate(f"replay(races[0].traces[{index}], 999)")
            assert [cell["token"] for cell in held] == generation.tokens
            assert [cell["forward"] for cell in held] == generation.step
            assert [cell["confidence"] for cell in held] == pytest.approx(generation.confidence, rel=1e-9)
            slide(made, 1)
            assert made.locator(".lane").nth(index).locator(".cell.committed").count() == generation.step.count(1)


def test_a_stopped_race_stays_and_what_the_server_refuses_is_said(browser, by_mode, metered):
    with visited(browser, by_mode, width=420) as made:
        made.fill("#text", PROMPTS[0])
        made.press("#text", "Enter")
        metered(2)
        made.wait_for_selector(".cell.committed")
        made.click("#stop")
        made.wait_for_selector("#stop", state="hidden")
        metered(10_000)
        assert made.is_visible(".cell.committed") and made.evaluate(WIDE) <= 420
        assert set(made.locator(".badge").all_inner_texts()) == {"stopped"}
        made.fill("#text", "a<mask>b")
        made.press("#text", "Enter")
        made.wait_for_selector("#trouble:not([hidden])")
        assert "holds the mask token" in made.inner_text("#trouble")


def test_a_server_with_a_key_is_asked_with_the_one_that_is_typed(browser, by_mode):
    with visited(browser, by_mode, key="secret") as made:
        assert "key is missing or wrong" in made.inner_text("#trouble")
        made.fill("[name=key]", "secret")
        made.fill("#text", PROMPTS[0])
        made.press("#text", "Enter")
        made.wait_for_selector("#score:not([hidden])")
        assert made.is_hidden("#trouble")


def test_a_race_is_saved_as_a_page_that_needs_no_server(browser, by_mode, tmp_path):
    with visited(browser, by_mode) as made:
        made.fill("#text", PROMPTS[1])
        made.click("#text")
        made.click("#send [type=submit]")
        made.wait_for_selector("#score:not([hidden])")
        with made.expect_download() as download:
            made.click("#save")
        download.value.save_as(tmp_path / "saved.html")
        kept = made.evaluate("JSON.stringify(races)")
        made.goto((tmp_path / "saved.html").as_uri())
        assert json.loads(made.evaluate("JSON.stringify(races)")) == json.loads(kept)
        assert made.locator(".cell.committed").count() and made.is_hidden("#ask")
