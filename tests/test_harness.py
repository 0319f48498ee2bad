"""Benchmarks of lm-evaluation-harness: the numbers are our own, in any batch, and nothing is asked twice."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from common import ROOT, config, everyday
from harness_tasks import texts_again, write_tasks
from omegaconf import OmegaConf

from dlm import evaluate
from dlm.config.build import ar_denoiser
from dlm.config.finished import FinishedRun, opened
from dlm.config.settings import Harness
from dlm.data import prose, tasks
from dlm.decoding.base import Decoder
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.evaluation import cloze
from dlm.evaluation.generation import accuracy, run_tasks
from dlm.evaluation.likelihood import likelihood, windows
from dlm.export import export
from dlm.harness.answers import Answers
from dlm.harness.benchmarks import benchmark, merged
from dlm.harness.task_loading import load_tasks, matching
from dlm.model.parent import load_parent
from dlm.runs.run import Run
from dlm.runs.storage import read_json

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from dlm.harness.model import DiffusionLM


@pytest.fixture(scope="module")
def parent():
    return load_parent("pkg://dlm/assets/tiny", check=False)


def run_of(folder, *overrides: str) -> Run:
    """A finished run whose dLM has the embedded parent's own weights."""
    run = Run.create(config(f"runs_dir={folder}", *overrides), {})
    shutil.copytree(ROOT / "dlm" / "assets" / "tiny", run.model_folder)
    run.seal("model")
    run.update(status="finished", parent={"source": "tiny", "fingerprint": "abe774858db02fc7"})
    return run


def settings(**values) -> Harness:
    yaml = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "evaluate.yaml").harness)
    return Harness(**yaml | values)


def asked(prompt: str, number: int = 0, task: str = "a", **options) -> Instance:
    return Instance("generate_until", {}, (prompt, options), number, (task, number, 1))


def model_of(denoiser, parent, folder, decoder=None, **options) -> DiffusionLM:
    return DiffusionLM(
        denoiser, parent.tokenizer, decoder or Threshold(0.9), Answers(folder / "answers.jsonl"), **options
    )


@pytest.mark.trains
@pytest.mark.parametrize(
    "overrides",
    everyday(
        [
            ["attention=block", "block_size=1", "token_shift=true"],  # as its parent
            ["attention=block", "block_size=4", "token_shift=false"],
        ]
    ),
    ids=" ".join,
)
def test_the_scores_and_costs_of_the_embedded_tasks_are_our_own(overrides, tmp_path, parent, short_prose):
    examples = tasks.evaluation_set("test", 2)
    items = texts_again(parent, cloze.items(list(prose.chapters("test")), parent.tokenizer, 60))[:8]
    write_tasks(tmp_path / "tasks", parent, examples, items)
    found = opened(str(run_of(tmp_path / "runs", *overrides).folder), "", "cpu")
    how = settings(include=str(tmp_path / "tasks"))
    scores = benchmark(found, found.decoding, ["embedded", "options"], how, False, tmp_path / "out")
    ours = accuracy(run_tasks(found.dlm, parent.tokenizer, examples, found.decoder, 24, 16))
    theirs = scores["dlm"]["embedded"]
    assert (theirs["metrics"]["exact_match,none"], theirs["n"]) == (ours["accuracy"], ours["n"])
    assert (theirs["nfe"], theirs["tpf"]) == (pytest.approx(ours["nfe"]), pytest.approx(ours["tpf"]))
    assert (ours["accuracy"] > 0.5) == ("block_size=1" in overrides)  # the numbers say something
    answers = cloze.answers(found.dlm, items, 16)
    right = sum(answer == item.answer for answer, item in zip(answers, items, strict=True)) / len(items)
    assert len(items) >= 6 and scores["dlm"]["options"]["metrics"]["acc,none"] == right


@pytest.mark.trains
@pytest.mark.parametrize("block_size", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_answers_and_scores_are_the_same_in_batches_of_1_3_and_16(block_size, tmp_path, parent):
    found = opened(str(run_of(tmp_path, "attention=block", f"block_size={block_size}", "token_shift=true").folder), "")
    prompts = [e.prompt for e in tasks.evaluation_set("test", 1)][:6]
    requests = [asked(p, n, until=[["1"], ["\n", "A"]][n % 2], max_gen_toks=8 + n % 2) for n, p in enumerate(prompts)]
    drawn = [asked(prompts[0], until=[], max_gen_toks=6, do_sample=True, temperature=3.0)] * 3
    scored = [Instance("loglikelihood", {}, (p, "1, 2 and 3"[: 3 + n]), n, ("a", n, 1)) for n, p in enumerate(prompts)]
    made = []
    for batch_size in (1, 3, 16):
        model = model_of(found.dlm, parent, tmp_path / str(batch_size), batch_size=batch_size)
        made.append((model.generate_until(requests + drawn), model.loglikelihood(scored)))
    texts, scores = zip(*made, strict=True)
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0][-3:])) > 1  # repeated draws are draws
    for others in scores[1:]:
        assert [log_p for log_p, _ in others] == pytest.approx([log_p for log_p, _ in scores[0]], abs=1e-4)
        assert [greedy for _, greedy in others] == [greedy for _, greedy in scores[0]]


def test_every_request_ends_at_its_own_stops_and_its_text_before_them(tmp_path, parent):
    model = model_of(ar_denoiser(parent), parent, tmp_path, Fixed(1))
    prompt, whole = "sort:DBCA=", "ABCD"
    stops = ([], ["B"], ["D", "C"], ["\n"])
    texts = model.generate_until([asked(prompt, n, until=stop, max_gen_toks=12) for n, stop in enumerate(stops)])
    assert texts == [whole, "A", "AB", whole]
    with_stop = [model.costs["a"].requests, *(a.tokens for a in model.answers.found.values())]
    assert with_stop == [4, 5, 1, 2, 5]  # the EOS counts, what follows a stop does not


def test_nothing_is_asked_twice_and_half_a_line_does_not_count(tmp_path, parent, monkeypatch):
    requests = [
        asked(f"reverse:{letters}=", n, until=["\n"], max_gen_toks=6) for n, letters in enumerate(("AB", "CDE"))
    ]
    scored = [Instance("loglikelihood", {}, ("And God said", " let"), 0, ("b", 0, 1))]
    first = model_of(ar_denoiser(parent), parent, tmp_path, Fixed(1))
    expected = first.generate_until(requests), first.loglikelihood(scored)
    path = first.answers.path
    path.write_text(path.read_text() + '\n{"key": "12", "tok')
    monkeypatch.setattr(Decoder, "generate", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("dlm.harness.model.scores", lambda *_: pytest.fail("scored again"))
    again = model_of(ar_denoiser(parent), parent, tmp_path, Fixed(1))
    assert (again.generate_until(requests), again.loglikelihood(scored)) == expected
    assert again.costs == first.costs and again.costs["a"].summary()["tpf"] == 1.0
    again.answers.add([("k", again.answers.get(next(iter(again.answers.found))))])
    assert Answers(path).get("k") is not None  # a line after the half one is whole


def test_a_question_that_is_too_long_is_cut_on_its_left_and_counted(tmp_path, parent):
    denoiser = ar_denoiser(parent)
    positions = denoiser.positions
    model = model_of(denoiser, parent, tmp_path, Fixed(1))
    long, short = "A " * positions + "reverse:AB=", "reverse:AB="
    assert model.generate_until([asked(long, until=[], max_gen_toks=6)]) != [""]
    ids, cut = model.fitted(model.tok_encode(long), 6)
    assert len(ids) == positions - 6 and len(model.tok_encode(long)) == len(ids) + cut
    assert model.tok_encode(long)[-20:] == ids[-20:] and model.fitted(model.tok_encode(short), 6)[1] == 0
    model.loglikelihood([Instance("loglikelihood", {}, (long, "BA"), 0, ("b", 0, 1))])
    assert (model.costs["a"].cut, model.costs["b"].cut) == (1, 1)
    with pytest.raises(ValueError, match=f"max_gen_toks {positions} leaves no room .* {positions} positions: lower"):
        model.generate_until([asked(short, until=[], max_gen_toks=positions)])
    with pytest.raises(ValueError, match="does not fit the model's"):
        model.fitted_pair([5], [6] * positions)


def test_a_cut_prompt_keeps_its_bos(tmp_path, parent):
    model = model_of(ar_denoiser(parent), parent, tmp_path, Fixed(1))
    model.adds_bos, model.tokenizer = True, SimpleNamespace(bos_token_id=7)
    assert model.shortened([7, 1, 2, 3, 4], 3) == ([7, 3, 4], 2)
    assert model.shortened([7, 1, 2], 3) == ([7, 1, 2], 0)


@pytest.mark.trains
def test_with_a_chat_template_a_question_is_a_turn_and_has_one_bos(tmp_path, parent, monkeypatch):
    found = opened(str(run_of(tmp_path / "runs", "attention=ar", "block_size=1", "token_shift=true").folder), "", "cpu")
    write_tasks(tmp_path / "tasks", parent, tasks.evaluation_set("test", 1)[:1], [])
    how = settings(include=str(tmp_path / "tasks"), chat_template=True, system="Be brief.", max_gen_toks=2)
    ask = lambda: benchmark(found, found.decoding, ["embedded"], how, False, tmp_path / "out")  # noqa: E731
    with pytest.raises(
        ValueError, match=r"the tokenizer of the dlm has no chat template: set harness\.chat_template=false"
    ):
        ask()
    found.converted.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    prompts = []
    decode = DiffusionLM.decode
    monkeypatch.setattr(
        DiffusionLM,
        "decode",
        lambda self, s, q, bar: prompts.extend(x.text for x in q.values()) or decode(self, s, q, bar),
    )
    ask()
    question = tasks.evaluation_set("test", 1)[0].prompt
    assert prompts == [f"system: Be brief.\nuser: {question}\nA: "]
    model = model_of(ar_denoiser(parent), parent, tmp_path, Fixed(1))
    model.adds_bos, model.tokenizer = True, lambda text, **_: {"input_ids": [int(c) for c in text]}
    model.tokenizer.bos_token_id = 7
    assert (model.tok_encode("12"), model.tok_encode("71"), model.tok_encode("1", False)) == ([7, 1, 2], [7, 1], [1])


def test_a_rolling_likelihood_is_that_of_the_parent_and_scores_every_token_once(tmp_path, parent, monkeypatch):
    text = next(iter(prose.chapters("test")))[:400]
    ids = parent.tokenizer(text)["input_ids"]
    model = model_of(ar_denoiser(parent), parent, tmp_path / "whole", Fixed(1))
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("a", 0, 1))
    (log_p,) = model.loglikelihood_rolling([request])
    with torch.no_grad():
        prefixed = torch.tensor([[parent.tokenizer.eos_token_id, *ids]])
        logits = parent.model(prefixed).logits[0, :-1]
        logits[:, parent.mask_id] = -torch.inf
    assert log_p == pytest.approx(logits.log_softmax(-1).gather(1, prefixed[0, 1:, None]).sum().item(), abs=1e-2)
    monkeypatch.setattr("dlm.model.layout.Layout.positions", 40, raising=False)
    monkeypatch.setattr("dlm.model.denoiser.Denoiser.positions", 40)
    short = model_of(ar_denoiser(parent), parent, tmp_path / "windows", Fixed(1))
    assert short.loglikelihood_rolling([request])[0] < log_p  # less context
    assert short.costs["a"].tokens == len(ids) and len(short.answers.found) == -(-len(ids) // 39)


@pytest.mark.trains
def test_with_nelbo_a_rolling_likelihood_is_our_bound_up_to_the_draws(tmp_path, parent, short_prose):
    found = opened(str(run_of(tmp_path, "attention=block", "block_size=4", "token_shift=true").folder), "")
    rows, num_bytes = windows(list(prose.chapters("test")), parent.tokenizer, 64, 2)
    ours = likelihood(found.dlm, rows, num_bytes, 24, 8)
    model = model_of(found.dlm, parent, tmp_path, samples=24)
    pairs = [(row.x0[:1].tolist(), row.x0[1:].tolist()) for row in rows]
    theirs = -sum(answer.log_p for answer in model.scored(pairs, True)) / ours.tokens
    assert theirs == pytest.approx(ours.nats, rel=0.1)


@pytest.mark.trains
def test_the_command_asks_a_run_and_its_parent_and_an_exported_folder_of_it(tmp_path, parent, call, short_prose):
    run = run_of(tmp_path / "runs", "attention=block", "block_size=4", "token_shift=true")
    write_tasks(tmp_path / "tasks", parent, tasks.evaluation_set("test", 1), [])
    include, where = f"harness.include={tmp_path / 'tasks'}", f"runs_dir={tmp_path / 'runs'}"
    code, said, error = call(evaluate.main, f"run={run.id}", where, "tasks=embedded", include, "harness.parent=true")
    assert (code, "embedded" in said) == (0, True), error
    scores = run.record["benchmarks"]
    assert (
        scores["parent"]["embedded"]["metrics"]["exact_match,none"] > 0.5 and scores["parent"]["embedded"]["tpf"] <= 1
    )
    lines = (run.folder / "benchmarks" / "items-parent-embedded.jsonl").read_text().splitlines()
    assert len(lines) == scores["parent"]["embedded"]["n"] == 9
    assert read_json(run.folder / "benchmarks" / "results.json") == scores
    folder = export(run, tmp_path / "exported")
    code, _, error = call(evaluate.main, f"run={folder}", "tasks=embedded", include)
    again = json.loads((folder / "benchmarks" / "results.json").read_text())["dlm"]["embedded"]
    assert code == 0 and again["nfe"] == scores["dlm"]["embedded"]["nfe"], error
    assert again["metrics"] == scores["dlm"]["embedded"]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["tasks=gsm8k_10"], "tasks gsm8k_10 are not known: .* such as .*gsm8k", marks=pytest.mark.slow),
        pytest.param(["tasks=mlmu_*"], r"tasks mlmu_\* match no task: .* such as .*mmlu", marks=pytest.mark.slow),
        (["tasks=humaneval"], "task humaneval runs the code that the model writes: set allow_code_execution=true"),
        (["tasks=gsm8k_100", "harness.likelihood=some"], "harness.likelihood 'some' is unknown: choose exact or nelbo"),
        (["tasks=gsm8k_100", "harness.limit=0"], "harness.limit 0 must be a whole number of at least 1 or null"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(arguments, message, finished_run, call, monkeypatch):
    monkeypatch.setattr(FinishedRun, "dlm", property(lambda self: pytest.fail("loaded")))
    code, _, error = call(evaluate.main, f"run={finished_run.folder}", *arguments)
    assert code == 1 and re.fullmatch(f"error: {message}.*\n", error), error


def test_scores_of_other_tasks_and_models_are_kept():
    kept = {"dlm": {"a": 1, "b": 2}, "parent": {"a": 3}}
    assert merged(kept, {"dlm": {"b": 4}}) == {"dlm": {"a": 1, "b": 4}, "parent": {"a": 3}}


def test_tasks_with_commas_are_a_list_and_no_sweep():
    said = {
        "tasks=a,b": "tasks=[a,b]",
        "tasks=a": "tasks=[a]",
        "tasks=[a,b]": "tasks=[a,b]",
        "tasks=null": "tasks=null",
    }
    assert {given: evaluate.listed(given) for given in said} == said and evaluate.listed("run=a,b") == "run=a,b"


def test_a_pattern_stands_for_every_task_that_it_matches_once_and_in_their_order(call, finished_run, monkeypatch):
    names = ["gsm8k", "mmlu", "mmlu_law", "mmlu_stem", "mmlu_x1"]
    manager = SimpleNamespace(all_tasks=names, task_index=dict.fromkeys(names))
    assert matching(["mmlu_law", "gsm8k", "mmlu_*"], manager) == ["mmlu_law", "gsm8k", "mmlu_stem", "mmlu_x1"]
    assert matching(["mmlu_x?"], manager) == ["mmlu_x1"]
    for wrong, message in {
        "mlmu_*": "tasks mlmu_* match no task: choose others, such as mmlu",
        "gsm8": "tasks gsm8 are not known: choose others, such as gsm8k",
    }.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            matching([wrong], manager)
    asked = []
    monkeypatch.setattr(evaluate, "evaluate_benchmarks", lambda cfg, tasks: asked.append(tasks))
    for argument in ("tasks=mmlu_*,gsm8k?", "tasks=mmlu_*"):
        assert call(evaluate.main, f"run={finished_run.folder}", argument)[0] == 0
    assert asked == [["mmlu_*", "gsm8k?"], ["mmlu_*"]]


def test_without_lm_eval_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ValueError, match=r"needs lm-evaluation-harness: pip install 'dlm\[eval\]'"):
        load_tasks(["gsm8k_100"], None, False)


def test_a_decoder_that_draws_is_another_one_and_the_first_stays_greedy():
    greedy = Threshold(0.9)
    drawing = greedy.sampling(0.7, 0.9)
    assert (drawing.rule.temperature, drawing.rule.top_p, drawing.rule.threshold) == (0.7, 0.9, 0.9)
    assert (greedy.rule.temperature, greedy.rule.top_p) == (0.0, 1.0)
    with pytest.raises(ValueError, match="temperature -1"):
        greedy.sampling(-1.0)
