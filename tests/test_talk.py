"""`python -m dlm.chat`: turns in every mode, shown as they become final, and continued from the cache."""

import io
import sys

import pytest
from common import everyday
from serving import by_engine, speakers

from dlm.chat import main
from dlm.config.arguments import literal
from dlm.serving.modes import conversation
from dlm.serving.talk import Talk

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def by_mode():
    return speakers()


@pytest.mark.parametrize("mode", everyday(["diffusion", "ar", "speculate"]))
def test_every_turn_is_the_engines_answer_to_the_whole_conversation(by_mode, mode):
    talk, turns = Talk(by_mode, 16, system="Be brief.", kept_tokens=200), []
    for question in ("What is it?", "And then?"):
        shown = []
        said = talk.answer(mode, question, lambda piece, forward: shown.append((piece, forward)))  # noqa: B023
        turns.append({"role": "user", "content": question})
        text = conversation(by_mode[mode].tokenizer, [{"role": "system", "content": "Be brief."}, *turns], "auto")
        expected = by_engine(by_mode[mode], text, 16, stop=["\nUser:"])
        assert said.answer.text == expected.text == "".join(piece for piece, _ in shown)
        assert said.answer.generation.nfe == expected.generation.nfe >= max(forward for _, forward in shown)
        assert said.answer.generation.step == expected.generation.step
        turns.append({"role": "assistant", "content": expected.text})
    assert talk.turns == turns
    if mode != "speculate":  # whose cache is that of one answer
        assert said.answer.generation.rows < expected.generation.rows - len(
            by_mode[mode].encode(turns[0]["content"], 1)
        )


def test_the_parents_answer_stands_beside_and_is_not_kept(by_mode):
    talk = Talk(by_mode, 8, template="raw")
    talk.answer("diffusion", "reverse:ABC=", lambda *piece: None)
    turns = list(talk.turns)
    said = talk.answer("parent", None, lambda *piece: None)
    assert said.answer.text == by_engine(by_mode["parent"], "reverse:ABC=", 8).text and talk.turns == turns


def test_a_turn_that_is_interrupted_or_too_long_is_forgotten(by_mode):
    talk = Talk(by_mode, 8, template="raw", kept_tokens=100)

    def interrupt(*piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.answer("ar", "reverse:ABC=", interrupt)
    with pytest.raises(ValueError, match="exceeds the model's"):
        talk.answer("ar", "reverse:ABC=" * 2000, interrupt)
    assert talk.turns == [] and talk.answer("ar", "reverse:ABC=", lambda *piece: None).answer.text


def test_a_script_on_standard_input_is_answered_line_by_line(finished_run, call, monkeypatch):
    lines = [
        "reverse:ABC=",
        "/parent",
        "/ar",
        "reverse:ABC=",
        "/speed",
        "",
        "/reset",
        "/parent",
        "/help",
        "/quit",
        "no",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    arguments = [f"run={finished_run.folder}", "template=raw", "max_new_tokens=8"]
    code, out, err = call(main, *arguments, literal("stop=="))
    assert code == 0 and not err, err
    said = [line.strip() for line in out.splitlines()]
    kinds = [line.partition(":")[0] for line in said if " tokens in " in line]
    assert kinds == ["diffusion", "parent", "ar"]
    assert "CBA" in said and "mode: ar" in said and "/speed is not known here: /help lists what is" in said
    assert "error: there is no question yet" in said and any(line.startswith("/speculate") for line in said)


def test_a_template_that_there_is_not_is_refused_before_anything_is_loaded(call):
    code, _, err = call(main, "run=nothing", "template=fancy")
    assert code == 1 and "template 'fancy' is unknown: choose auto, chat, plain, raw" in err
