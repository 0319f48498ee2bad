"""An answer as it is made: what is drawn is what was decoded, and stops are cut."""

import itertools

import pytest
import torch
from common import EOS_ID
from speakers import NEW_TOKENS, PROMPT, answer, ar, dlm

from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.model.parent import load_parent
from dlm.watch.pieces import printable
from dlm.watch.terminal import MASKED, NEW, annotated, frame, style_of

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def parent():
    return load_parent("pkg://dlm/assets/tiny", check=False)


@pytest.mark.parametrize("token_shift", [False, True])
def test_one_frame_per_forward_and_committed_tokens_stay(parent, token_shift):
    canvases = []
    found = answer(
        dlm(parent, token_shift=token_shift),
        on_frame=lambda canvas, seconds: canvases.append((canvas.x.clone(), canvas.masked.clone())),
    )
    assert len(canvases) == found.generation.nfe > 1
    for (x, masked), (later, still) in itertools.pairwise(canvases):
        assert torch.equal(x[~masked], later[~masked]) and not (still & ~masked).any()


def test_a_frame_marks_exactly_what_its_forward_committed_and_boxes_what_is_masked(parent):
    speaker, seen = dlm(parent), []

    def look(canvas, seconds):
        drawn = frame(canvas, parent.tokenizer, [EOS_ID], "dLM", seconds)
        begin = int(canvas.prompt_length[0])
        tokens = canvas.x[0, begin : begin + NEW_TOKENS].tolist()
        shown = slice(begin, begin + (tokens + [0]).index(0) + 1)  # up to EOS
        masked = canvas.masked[0, shown][:NEW_TOKENS]
        marks = sum(str(span.style) == NEW for span in drawn.spans)
        assert marks == int(((canvas.step[0, shown][:NEW_TOKENS] == canvas.nfe[0]) & ~masked).sum())
        assert drawn.plain.count(MASKED) == int(masked.sum())
        assert PROMPT in drawn.plain and f"in {int(canvas.nfe[0])} forward" in drawn.plain
        seen.append((marks, int(masked.sum())))

    answer(speaker, "sort:QWERTYUIOP=", on_frame=lambda canvas, seconds: None)
    answer(speaker, on_frame=look)
    assert len(seen) > 1 and any(marks for marks, _ in seen) and seen[0][1] > 0


def test_the_last_view_gives_every_token_its_forward_in_number_and_colour(parent):
    made = answer(dlm(parent, Fixed(2)), "sort:CBA=").generation
    for width in (40, 200):
        view = annotated(made, parent.tokenizer, width)
        lines = view.plain.splitlines()
        assert all(len(line) <= width for line in lines[:-1]) and (len(lines) == 3) == (width == 200)
        steps = " ".join(line[13:] for line in lines[1:-1:2]).split()
        assert [int(n) for n in steps] == made.step
        assert sum(len(line[13:].split()) for line in lines[:-1:2]) == len(made.tokens)
    colours = [str(s.style) for s in view.spans if str(s.style) != "dim"]
    assert colours[: len(made.step)] == [style_of(step, made.nfe) for step in made.step]
    assert all(f"■ {n}" in lines[-1] for n in range(1, made.nfe + 1)) or "–" in lines[-1]


@pytest.mark.parametrize("nfe", [1, 2, 5, 6, 7, 40])
def test_colours_go_from_the_first_forward_to_the_last(nfe):
    colours = [style_of(step, nfe) for step in range(1, nfe + 1)]
    runs = [colour for colour, _ in itertools.groupby(colours)]
    assert colours[0] == "yellow" and len(runs) == min(nfe, 6) == len(set(runs))


def test_a_stop_string_ends_the_answer_and_what_follows_is_discarded(parent):
    whole = answer(ar(parent))
    cut = answer(ar(parent), stops=[whole.text[3]])
    assert cut.text == whole.text[:3] and cut.generation.nfe == 4 < whole.generation.nfe
    assert cut.generation.tokens == whole.generation.tokens[:3] and len(cut.generation.step) == 3


def test_a_stop_string_inside_a_block_cuts_there_though_the_block_was_finished(parent):
    whole = answer(dlm(parent, Fixed(1), block_size=16))
    cut = answer(dlm(parent, Fixed(1), block_size=16), stops=["never", whole.text[2:4]])
    assert cut.text == whole.text[: whole.text.index(whole.text[2:4])]
    assert parent.tokenizer.decode(cut.generation.tokens) == cut.text


@pytest.mark.parametrize("prompt", [PROMPT, "sum:1,2,3,4,5=", "In the beginning"])
def test_the_parents_answer_is_hugging_faces_greedy_generation(parent, prompt):
    ids = ar(parent).encode(prompt, NEW_TOKENS)
    theirs = parent.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(ids) :]
    assert answer(ar(parent), prompt).generation.tokens == theirs.tolist()


def test_a_sampled_answer_is_a_function_of_the_seed(parent):
    hot = dlm(parent, Threshold(0.9, temperature=1.5))
    tokens = [answer(hot, "In the beginning", seed=s).generation.tokens for s in (0, 0, 1, 2)]
    assert tokens[0] == tokens[1] and len({tuple(t) for t in tokens}) > 1


def test_what_a_model_writes_cannot_steer_the_terminal():
    assert printable("a\x1b[31mb\r\n\tc") == "a�[31mb�\n\tc"
