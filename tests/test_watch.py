"""The trace of an answer is what the engine decoded, and the page that plays it holds it, whatever texts are in it."""

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from common import EOS_ID
from test_decoding_contract import NEW, ONE_EACH, PROMPTS, REQUEST, decoder, scorer

from dlm.attention.block import Block
from dlm.decoding.base import Decoder
from dlm.decoding.remask import Remask
from dlm.watch.page import STATIC, page, require_writable
from dlm.watch.trace import Predictions, Race, Recorder, Step, Trace, closing, opening

HOSTILE = ["</script><script>alert(1)</script>", "\"quotes\" and 'quotes'", "two\nlines", "\u2028\u2029", "<!--"]
HOSTILE += ["{{ style }}{{ races }}", "\ud800", "&lt;", "\x00\x1b[31m"]


class Numbers:
    """A tokenizer whose token n has the text <n>."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [1]}

    def decode(self, tokens):
        return "".join(f"<{token}>" for token in tokens)


def recorded(decoder: Decoder, pattern: str):
    """The generations of prompts that are decoded side by side, and the steps of each."""
    recorders = [Recorder(Numbers()) for _ in PROMPTS]

    def see(canvas):
        for row, length in enumerate(canvas.prompt_length.tolist()):
            recorders[PROMPTS.index(canvas.x[row, :length].tolist())].see(canvas, 0.5, row)

    made = decoder.generate(scorer(pattern), replace(REQUEST, on_step=see))
    return made, [recorder.steps for recorder in recorders]


def rows(predictions: Predictions):
    return zip(predictions.positions, predictions.tokens, predictions.confidences, strict=True)


def replayed(steps: list[Step]) -> dict[int, tuple[int, int, float]]:
    """What stands at each position in the end: the token, the forward that committed it, and its last confidence."""
    held = {}
    for step in steps:
        for position in step.remasked:
            del held[position]
        for position, token, confidence in rows(step.guesses):
            if position in held:  # a visible token that was scored again, and stays
                held[position] = (token, held[position][1], confidence)
        for position, token, confidence in rows(step.committed):
            held[position] = (token, step.forward, confidence)
    return held


@pytest.mark.parametrize(("name", "pattern"), ONE_EACH)
def test_the_steps_of_a_trace_give_the_engines_tokens_and_the_forward_and_confidence_of_each(name, pattern):
    made, steps_of_all = recorded(decoder(name), pattern)
    for prompt, generation, steps in zip(PROMPTS, made, steps_of_all, strict=True):
        assert [step.forward for step in steps] == [*range(1, generation.nfe + 1)]
        answer = range(len(prompt), len(prompt) + len(generation.tokens))
        held = replayed([step.before(answer.stop) for step in steps])
        assert sorted(held) == [*answer]
        tokens, forwards, confidences = map(list, zip(*(held[position] for position in answer), strict=True))
        assert (tokens, forwards) == (generation.tokens, generation.step)
        if name != "remask":  # the engine keeps the confidence with which a token was committed
            assert confidences == generation.confidence


def test_guesses_are_the_predictions_of_the_block_that_stay_masked():
    _, steps_of_all = recorded(decoder("threshold"), "block")
    for prompt, steps in zip(PROMPTS, steps_of_all, strict=True):
        masked = {*range(len(prompt), len(prompt) + NEW)}
        for step in steps:
            masked -= {*step.committed.positions}
            assert {*step.guesses.positions} <= masked & {*range(*step.block)}
            assert {*step.committed.positions} <= {*range(*step.block)} and step.remasked == []
            assert all(0 <= confidence <= 1 for _, _, confidence in rows(step.guesses))
    guessed = sum(len(step.guesses.positions) for steps in steps_of_all for step in steps)
    assert guessed > 10 and not masked - {*range(len(prompt), len(prompt) + NEW)}


def test_what_is_masked_again_is_taken_back_by_its_step_and_the_last_token_there_is_the_answers():
    made, steps_of_all = recorded(Remask(threshold=0.2, remask_below=0.6), "bidir")
    taken = [{p: step.forward for step in steps for p in step.remasked} for steps in steps_of_all]
    assert any(taken)
    for prompt, generation, steps, last in zip(PROMPTS, made, steps_of_all, taken, strict=True):
        held = replayed([step.before(len(prompt) + len(generation.tokens)) for step in steps])
        assert [held[position][0] for position in sorted(held)] == generation.tokens
        assert all(held[position][1] > forward for position, forward in last.items() if position in held)


def race(texts: list[str]) -> Race:
    """A made-up race in which every text is a token that a forward of its own commits."""
    nothing = Predictions()
    steps = [
        Step(i + 1, (4 + i, 5 + i), Predictions([4 + i], [9], [text], [0.25]), nothing, [], 0.1 * (i + 1))
        for i, text in enumerate(texts)
    ]
    begin = opening("dLM", Numbers(), [1, 2, 3, 4], Block(1), [EOS_ID])
    return Race("".join(texts), {"stop": texts}, [Trace(begin, steps, closing("".join(texts), len(texts), 5, 2.0))])


class Scripts(HTMLParser):
    """Collects the contents of script elements, and every tag, as a browser would."""

    def __init__(self):
        super().__init__()
        self.scripts, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append([dict(attrs).get("type"), ""])

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script" and self.scripts:
            self.scripts[-1][1] += data


def read(text: str) -> Scripts:
    parser = Scripts()
    parser.feed(text)
    return parser


def test_hostile_texts_are_data_and_nothing_else():
    told = [race(HOSTILE)]
    found, plain = read(page(told)), read(page([race(["a"])]))
    assert found.tags == plain.tags and found.scripts[1] == plain.scripts[1]
    kind, data = found.scripts[0]
    assert kind == "application/json" and data.isascii() and not set(data) & set("<>&")
    assert json.loads(data) == json.loads(json.dumps([asdict(r) for r in told]))


def test_the_page_asks_nothing_of_the_network():
    text = page([race(["a"])])
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\((?!data:)|@import|\bimport\(""", text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}  # the name of a namespace
    assert "default-src 'none'" in text


def test_every_part_of_the_page_is_in_it():
    text = page()
    for path in STATIC.iterdir():
        if path.suffix in (".js", ".css"):
            assert path.read_text(encoding="utf-8").strip() in text, path.name
    assert "{{" not in text and "</script" not in "".join(p.read_text("utf-8") for p in STATIC.glob("*.js"))
    assert json.loads(read(text).scripts[0][1]) == []


def test_a_place_for_the_page_that_cannot_be_written_is_named(tmp_path):
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "a.html", "folder that does not exist")):
        with pytest.raises(ValueError, match=f"^html {re.escape(str(path))} is .*{why.removeprefix('is ')}"):
            require_writable(path, "html")
    require_writable(tmp_path / "a.html", "html")


def test_the_rates_of_a_closing_are_those_of_its_numbers():
    made = closing("x", 10, 4, 2.0)
    assert (made.tpf, made.tokens_per_second) == (2.5, 5.0)
