"""`python -m dlm.generate`: prompts of the shell, answers of the newest run, pages, and bad input that is named."""

import errno
import io
import json
import re
import sys

import pytest
from common import config, one_in
from hydra.errors import MissingConfigException
from speakers import answer, ar, dlm

from dlm.decoding.threshold import Threshold
from dlm.generate import literal, main, write_page
from dlm.model.packed_linears import PackedLinears
from dlm.model.parent import load_parent
from dlm.runs.run import Run
from dlm.watch.terminal import MASKED

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def parent():
    return load_parent("pkg://dlm/assets/tiny", check=False)


def make_run(root, parent, seed: int, **record) -> Run:
    """The folder that a finished training leaves."""
    run = Run.create(config(f"runs_dir={root}", f"seed={seed}", "block_size=8", "token_shift=true"), {})
    parent.model.save_pretrained(run.model_folder)
    parent.tokenizer.save_pretrained(run.model_folder)
    run.update(status="finished", **record)
    return run


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, parent):
    root = tmp_path_factory.mktemp("runs")
    for seed, ended in enumerate([100.0, 300.0, 200.0]):
        make_run(root, parent, seed, ended=ended)
    return root


@pytest.fixture
def command(runs_dir, call):
    """The command in this process: (exit code, stdout, stderr)."""
    return lambda *arguments: call(main, f"runs_dir={runs_dir}", *map(literal, arguments))


@pytest.fixture
def piped(monkeypatch):
    """Bytes on standard input."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.mark.parametrize(
    "text", ["reverse:ABC=", "1,2,3", "it's", "a\\'b", "end\\", "two\nlines", "null", "12", "${x}"]
)
def test_any_text_of_the_shell_is_the_prompt(text):
    assert config(literal(f"prompt={text}"), name="generate").prompt == text


def test_lists_and_quoted_texts_stay_hydras():
    for argument in ('prompt=["a","b,c"]', "prompt='a, b'", "max_new_tokens=3"):
        assert literal(argument) == argument


def test_the_command_answers_with_the_newest_run_without_escape_codes_when_piped(command, piped, runs_dir):
    piped(b"count A:ABA=\n")
    code, out, err = command("prompt=-", "decoding=fixed")
    assert (code, err) == (0, "")
    assert not any(c < " " and c != "\n" for c in out)
    lines = out.splitlines()
    newest = next(r for r in map(Run, runs_dir.iterdir()) if r.record["ended"] == 300.0)
    assert lines[0].split() == ["run", newest.id] and lines[2].split(maxsplit=1) == ["prompt", "count A:ABA="]
    assert [line[:11] for line in lines if line[:1].strip()] == [
        "run        ",
        "prompt     ",
        "dLM        ",
        "parent (AR)",
    ]
    assert sum("forwards (NFE): TPF " in line for line in lines) == 2


def test_bytes_on_standard_input_that_are_no_text_are_refused(command, piped):
    piped(b"caf\xe9\n")
    code, out, err = command("prompt=-")
    assert (code, out) == (1, "")
    assert err.startswith("error: standard input is no text in UTF-8 (") and err.count("\n") == 1


def test_several_prompts_each_get_an_answer_under_changed_decoding(command, parent, runs_dir):
    code, out, err = command('prompt=["sum:1,2=",A]', "+decoding.threshold=0.0", "parent=false", "max_new_tokens=20")
    assert (code, err) == (0, "")
    assert out.count("dLM  ") == out.count("prompt  ") == 2 and "parent (AR)" not in out
    found = answer(dlm(parent, Threshold(0.0)), "sum:1,2=")
    assert f"in {found.generation.nfe} forwards (NFE)" in out


def test_the_models_of_both_answers_decode_from_packed_weights(command, monkeypatch):
    entered = []

    class Watched(PackedLinears):
        def __enter__(self):
            entered.append(self.forwards)
            return super().__enter__()

    plain = command("max_new_tokens=8")[1]  # the weights are small
    monkeypatch.setattr("dlm.model.packed_linears.MIN_ELEMENTS", 0)
    monkeypatch.setattr("dlm.generate.PackedLinears", Watched)
    made = command("max_new_tokens=8")[1]
    assert len(entered) == 2 and all(entered)
    rate = re.compile(r"\d+ tokens/s")
    assert rate.sub("", made) == rate.sub("", plain)


def test_live_draws_the_frames_on_a_terminal(command):
    code, out, _ = command("live=true", "delay=0", "max_new_tokens=8")
    assert code == 0 and "\x1b[" in out and MASKED in out and out.count("in 1 forward (NFE)") >= 2


def test_the_page_holds_the_answers_to_all_prompts_as_the_engine_made_them(command, parent, tmp_path):
    path = tmp_path / "two answers.html"
    code, out, err = command('prompt=["sum:1,2=","reverse:AB="]', f"html={path}", "max_new_tokens=12", "stop=Q")
    assert (code, err) == (0, "") and f"{path} has the page" in out
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    races = json.loads(data[1])
    assert [race["prompt"] for race in races] == ["sum:1,2=", "reverse:AB="]
    for race in races:
        assert race["settings"]["decoding"] == "threshold" and race["settings"]["stop"] == ["Q"]
        for told, speaker in zip(race["traces"], (dlm(parent, Threshold(0.9)), ar(parent)), strict=True):
            ids = speaker.encode(race["prompt"], 12)
            made = speaker.answer(ids, 12, ["Q"], 0)
            begin, generation = len(ids), made.generation
            assert told["opening"]["name"] == speaker.name and told["opening"]["prompt_tokens"] == ids
            assert (told["closing"]["text"], told["closing"]["nfe"]) == (made.text, generation.nfe)
            found = {
                position - begin: (token, step["forward"], confidence)
                for step in told["steps"]
                for position, token, confidence in zip(
                    *(step["committed"][name] for name in ("positions", "tokens", "confidences")), strict=True
                )
            }
            confidences = (pytest.approx(value, rel=1e-5) for value in generation.confidence)  # packed weights round
            assert found == dict(enumerate(zip(generation.tokens, generation.step, confidences, strict=True)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    one_in(
        2,
        [
            (
                ["html=/nonexistent/a.html"],
                "html /nonexistent/a.html is in a folder that does not exist: make /nonexistent",
            ),
            (["html=/"], "html / is a folder: name a file in it"),
            (["run=nowhere"], "run 'nowhere' does not exist"),
            (["runs_dir=/nonexistent"], "holds no finished run: make one with python -m dlm.train"),
            (["max_new_tokens=0"], "max_new_tokens 0 must be at least 1"),
            (
                ["max_new_tokens=2000"],
                "prompt's 10 tokens and max_new_tokens 2000, 2016 up to the end of a block, exceeds the model's 1024",
            ),
            (["prompt="], "prompt '' is empty, and the dLM scores every token from the one before it"),
            (["decoding=threshold", "decoding.threshold=-1"], "decoding.threshold -1 must be >= 0"),
            (["delay=-1"], "delay -1 must be at least 0 seconds"),
            (["live=maybe"], "live 'maybe' must be true, false or auto"),
            (["stop="], "stop holds an empty text"),
            (["prompt=[{role:user,content:hi}]"], "prompt [{'role': 'user', 'content': 'hi'}] must be a text or"),
            (["prompt=caf\udce9"], "prompt 'caf\\udce9' is no text in UTF-8"),
            (["prompt=a<mask>b"], "prompt 'a<mask>b' holds the mask token '<mask>'"),
            (["delay=inf"], "delay inf must be a finite number: set delay=VALUE"),
            (["seed=0.5"], "seed 0.5 must be a whole number of at least 0: set seed=VALUE"),
        ],
    ),
)
def test_bad_input_is_one_clear_line(command, arguments, message):
    code, out, err = command(*arguments)
    assert code == 1 and message in err and err.count("\n") == 1 and out == ""


def test_an_unfinished_run_is_named(command, tmp_path):
    run = Run.create(config(f"runs_dir={tmp_path}"), {})
    code, _, err = command(f"runs_dir={tmp_path}", f"run={run.id}")
    assert code == 1 and f"run {run.id} is new and has no model" in err


def test_an_empty_prompt_is_continued_without_the_shift(parent):
    assert answer(dlm(parent, token_shift=False), "").generation.tokens


def test_a_decoder_that_there_is_not_is_refused_and_not_left_out():
    with pytest.raises(MissingConfigException, match="decoding/nonsense"):
        config("decoding=nonsense", name="generate")
    assert "decoding" not in config(name="generate")
    assert config("+decoding.threshold=0.5", name="generate").decoding == {"threshold": 0.5}


def test_a_page_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    file = tmp_path / "answer.html"
    file.write_text("before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dlm.runs.storage.os.fsync", full)
    with pytest.raises(ValueError, match=r"cannot be written \(.*No space left.*\): name another file"):
        write_page(file, "after")
    assert file.read_text() == "before" and [*tmp_path.iterdir()] == [file]
