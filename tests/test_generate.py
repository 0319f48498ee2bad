"""`python -m dlm.generate`: what is drawn is what was decoded, stops are cut, bad input is named."""

import itertools
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, config
from rich.console import Console

from dlm.build import ar_denoiser
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.denoiser import Denoiser
from dlm.generate import MASKED, answer, coloured, frame, prompt_ids, prompts_of
from dlm.parent import load_parent
from dlm.runs import Run
from dlm.train import train


@pytest.fixture(scope="module")
def parent():
    return load_parent("pkg://dlm/assets/tiny", check=False)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """A converted model (after four steps)."""
    root = tmp_path_factory.mktemp("runs")
    small = ["tokens=1024", "block_size=8", "data.length=64", "data.batch_size=4", "data.val_rows=4", "logger=csv"]
    small += ["data.mixture={tasks: 1.0}", "trainer.volatile.progress_bar=false", "evaluation=none"]
    train(config(*small, f"runs_dir={root}"))
    return root


def dlm(parent) -> Denoiser:
    from dlm.attention.block import Block

    return Denoiser(parent.model, Block(8), parent.mask_id, True, parent.layer_types)


def command(*arguments, runs_dir, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "dlm.generate", f"runs_dir={runs_dir}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        input=stdin,
    )


def test_one_frame_per_forward_and_committed_tokens_stay(parent):
    denoiser, frames, canvases = dlm(parent), [], []

    def seen(canvas):
        frames.append(frame(canvas, parent).plain)
        canvases.append((canvas.x.clone(), canvas.masked.clone()))

    ids = prompt_ids(parent, "reverse:ABCDEFG=", denoiser, 16)
    found = answer(denoiser, parent, ids, Threshold(0.5), 16, [], on_step=seen)
    assert len(frames) == found.generation.nfe > 1
    for (x, masked), (later, still) in itertools.pairwise(canvases):
        assert torch.equal(x[~masked], later[~masked]) and not (still & ~masked).any()
    assert frames[0].startswith("forward   1  reverse:ABCDEFG=") and MASKED in frames[0]


def test_a_frame_marks_exactly_what_its_forward_committed(parent):
    marks = []

    def seen(canvas):
        spans = [s for s in frame(canvas, parent).spans if "green" in str(s.style)]
        committed = (canvas.step[0] == canvas.nfe[0]) & ~canvas.masked[0]
        end = int(canvas.start[0]) + canvas.block_size
        marks.append((len(spans), int(committed[:end].sum())))

    denoiser = dlm(parent)
    ids = prompt_ids(parent, "sort:QWERTYUIOP=", denoiser, 16)
    answer(denoiser, parent, ids, Threshold(0.5), 16, [], on_step=seen)
    assert all(drawn == committed for drawn, committed in marks[:-1]) and any(n for n, _ in marks)


def test_the_last_view_gives_every_token_its_forward(parent):
    denoiser = dlm(parent)
    found = answer(denoiser, parent, prompt_ids(parent, "sort:CBA=", denoiser, 16), Fixed(1), 16, [])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(coloured(found.generation, parent))
    lines = console.export_text().splitlines()
    assert len(lines[0].split()) == len(lines[1].split()) == len(found.generation.tokens) + 1
    assert [int(n) for n in lines[1].split()[1:]] == found.generation.step


def test_a_stop_string_ends_the_answer_and_is_cut(parent):
    denoiser = ar_denoiser(parent)
    ids = prompt_ids(parent, "reverse:ABCDEFG=", denoiser, 16)
    whole = answer(denoiser, parent, ids, Fixed(1), 16, [])
    cut = answer(denoiser, parent, ids, Fixed(1), 16, [whole.text[3]])
    assert cut.text == whole.text[:3] and cut.generation.nfe == 4 < whole.generation.nfe


def test_the_parents_answer_is_hugging_faces_greedy_generation(parent):
    denoiser = ar_denoiser(parent)
    ids = prompt_ids(parent, "sum:1,2,3,4,5=", denoiser, 16)
    theirs = parent.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16)[0, len(ids) :].tolist()
    assert answer(denoiser, parent, ids, Fixed(1), 16, []).generation.tokens == theirs


def test_a_sampled_answer_is_a_function_of_the_seed(parent):
    denoiser = dlm(parent)
    ids = prompt_ids(parent, "In the beginning", denoiser, 16)
    hot = Threshold(0.9, temperature=1.5)
    tokens = [answer(denoiser, parent, ids, hot, 16, [], seed=s).generation.tokens for s in (0, 0, 1, 2)]
    assert tokens[0] == tokens[1] and len({tuple(t) for t in tokens}) > 1


def test_prompts_are_one_several_or_standard_input(monkeypatch):
    assert prompts_of("a b") == ["a b"] and prompts_of(["a", "b"]) == ["a", "b"]
    monkeypatch.setattr("sys.stdin", type("In", (), {"read": lambda self: "from a pipe\n"})())
    assert prompts_of("-") == ["from a pipe"]


def test_a_prompt_that_does_not_fit_or_is_empty_is_refused(parent):
    with pytest.raises(ValueError, match="10 tokens and max_new_tokens 2000 exceed the model's 1024 positions"):
        prompt_ids(parent, "reverse:ABCDEFG=", dlm(parent), 2000)
    with pytest.raises(ValueError, match="prompt '' is empty"):
        prompt_ids(parent, "", dlm(parent), 16)


def test_the_command_answers_with_the_newest_run_without_escape_codes_when_piped(runs_dir):
    done = command("prompt=-", "decoding=fixed", "decoding.tokens_per_step=2", runs_dir=runs_dir, stdin="count A:ABA=")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "prompt   count A:ABA=" in done.stdout
    assert f"dLM, run {Run.newest(runs_dir).id}: " in done.stdout and "parent: " in done.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("run=nowhere", "error: run 'nowhere' does not exist"),
        ("max_new_tokens=0", "error: max_new_tokens 0 must be at least 1"),
        ("runs_dir=/nonexistent", "holds no finished run: make one with python -m dlm.train"),
    ],
)
def test_bad_input_is_one_clear_line(argument, message, runs_dir):
    done = command(argument, runs_dir=runs_dir)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_a_run_without_a_model_is_named(runs_dir, tmp_path):
    run = Run.create(config(f"runs_dir={tmp_path}"), {})
    done = command(f"run={run.id}", runs_dir=tmp_path)
    assert done.returncode == 1 and f"run {run.id} is new and has no model" in done.stderr
