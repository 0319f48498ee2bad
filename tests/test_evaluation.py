"""Evaluation: likelihoods against Hugging Face's, intervals and traces by hand, thresholds from validation items."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from common import config, everyday

from dlm.attention.block import Block
from dlm.attention.block_noisy import BlockNoisy
from dlm.config.build import ar_denoiser
from dlm.config.finished import FinishedRun
from dlm.config.values import evaluation_of
from dlm.data import prose, tasks
from dlm.data.example import Example
from dlm.decoding.fixed import Fixed
from dlm.evaluation import cloze, throughput
from dlm.evaluation.generation import accuracy, run_tasks, trace_summary
from dlm.evaluation.interval import wilson
from dlm.evaluation.likelihood import likelihood, windows
from dlm.evaluation.scores import scores
from dlm.evaluation.suite import calibrate, decoding_timer
from dlm.evaluation.summary import label
from dlm.evaluation.throughput import interleaved
from dlm.exported.embedded import card
from dlm.model.denoiser import Denoiser
from dlm.model.parent import load_parent
from dlm.runs.run import Run, headline
from dlm.types import generator


@pytest.fixture(scope="module")
def parent():
    return load_parent("pkg://dlm/assets/tiny", check=False)


@pytest.fixture(scope="module")
def rows(parent):
    return windows(list(prose.chapters("test"))[:4], parent.tokenizer, 64, 6)


def own_nll(parent, ids: torch.Tensor) -> torch.Tensor:
    """Hugging Face's negative log-likelihood of every token but the first, the mask token ruled out as in ours."""
    with torch.no_grad():
        logits = parent.model(input_ids=ids).logits.float()
    logits[..., parent.mask_id] = -torch.inf
    return -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()


def test_the_parents_likelihood_is_hugging_faces_in_nats_and_in_bits_per_byte(parent, rows):
    found = likelihood(ar_denoiser(parent), *rows, samples=4, batch_size=4)
    ids = torch.stack([row.x0 for row in rows[0]])
    theirs = own_nll(parent, ids)
    assert found.tokens == theirs.numel()
    assert found.nats == pytest.approx(theirs.mean().item(), abs=1e-5)
    text = sum(len(parent.tokenizer.decode(row[1:]).encode()) for row in ids)
    assert found.bits_per_byte == pytest.approx(theirs.sum().item() / text / math.log(2), abs=1e-5)
    assert found.standard_error == pytest.approx(theirs.mean(1).std().item() / math.sqrt(len(ids)), abs=1e-5)


def test_blocks_of_one_token_with_the_shift_have_the_parents_likelihood_exactly(parent, rows):
    one = Denoiser(parent.model, Block(1), parent.mask_id, True, parent.layer_types)
    bound, exact = (likelihood(d, *rows, samples=3, batch_size=4) for d in (one, ar_denoiser(parent)))
    assert bound.nats == pytest.approx(exact.nats, abs=1e-5)


def test_the_bound_of_larger_blocks_is_above_the_parents_likelihood_and_is_the_same_every_time(parent, rows):
    large = Denoiser(parent.model, Block(16), parent.mask_id, True, parent.layer_types)
    first, again = (likelihood(large, *rows, samples=2, batch_size=4) for _ in range(2))
    assert first == again and first.nats > likelihood(ar_denoiser(parent), *rows, samples=1, batch_size=4).nats


def test_the_bound_is_the_mean_over_the_draws_of_the_noise(parent, rows, monkeypatch):
    large = Denoiser(parent.model, Block(16), parent.mask_id, False, parent.layer_types)
    apart = []
    for draw in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(
                "dlm.evaluation.likelihood.generator", lambda *seeds, n=draw: generator(seeds[0], n, seeds[2])
            )
            apart.append(likelihood(large, *rows, samples=1, batch_size=4).nats)
    assert len(set(apart)) == 3
    assert likelihood(large, *rows, samples=3, batch_size=4).nats == pytest.approx(sum(apart) / 3, abs=1e-9)


def test_the_parents_cloze_scores_are_hugging_faces(parent):
    questions = cloze.items(list(prose.chapters("test")), parent.tokenizer, 6)
    ours = cloze.answers(ar_denoiser(parent), questions, 16)
    for question, chosen in zip(questions, ours, strict=True):
        assert len({tuple(option) for option in question.options}) == 4
        scores = [own_nll(parent, torch.tensor([question.context + o]))[0, -len(o) :].sum() for o in question.options]
        assert chosen == int(torch.stack(scores).argmin())


@pytest.mark.trains
@pytest.mark.parametrize("pattern", everyday([Block, BlockNoisy]))
def test_the_likeliest_option_is_that_of_options_scored_one_by_one(parent, pattern):
    denoiser = Denoiser(parent.model, pattern(8), parent.mask_id, False, parent.layer_types)
    questions = cloze.items(list(prose.chapters("test")), parent.tokenizer, 6)
    expected = []
    for question in questions:
        log_p = [scores(denoiser, [(question.context, option)])[0].log_p for option in question.options]
        expected.append(log_p.index(max(log_p)))
    assert len(set(expected)) > 1
    for batch_size in (8, 24, 100):  # one option at a time, three, and twelve
        assert cloze.answers(denoiser, questions, batch_size) == expected


def test_accuracy_by_hand():
    results = pd.DataFrame(
        {"family": ["a", "a", "b", "b"], "correct": [1, 0, 1, 1], "tokens": [4, 4, 4, 8], "nfe": [2, 2, 4, 2]}
    ).astype({"correct": bool})
    found = accuracy(results)
    assert (found["accuracy"], found["n"], found["tpf"], found["nfe"]) == (0.75, 4, 2.0, 2.5)
    # Wilson: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    z, p, n = 1.959964, 0.75, 4
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=1e-6)
    assert found["families"]["a"]["accuracy"] == 0.5 and found["families"]["b"]["tpf"] == 2.0


@pytest.mark.parametrize("n", [1, 2, 7, 90])
def test_the_interval_of_a_fraction_holds_every_probability_that_a_score_test_does_not_reject(n):
    z = 1.959963984540054
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        assert 0 <= low <= successes / n <= high <= 1 and high - low > 0.01
        roots = np.roots([n + z**2, -(2 * successes + z**2), successes**2 / n])  # of (k - np)² = z² n p (1 - p)
        assert [low, high] == pytest.approx(sorted(roots.real), abs=1e-12)
    with pytest.raises(ValueError, match="must not be greater than n"):
        wilson(n + 1, n)


def test_a_trace_summary_by_hand():
    """Prompt of 3, blocks of 4: the answer fills position 3 of block 0 and positions 0-2 of block 1."""
    results = pd.DataFrame([{"prompt_tokens": 3, "step": [1, 4, 2, 3], "confidence": [0.9, 0.5, 0.7, 0.6]}])
    found = {row["position"]: (row["step"], row["confidence"]) for row in trace_summary(results, 4)}
    assert found == {3: (0, 0.9), 0: (2, 0.5), 1: (0, 0.7), 2: (1, 0.6)}


def test_tasks_are_checked_by_their_own_answers(parent):
    examples = [Example("reverse", "reverse:ABCDE=", "EDCBA"), Example("reverse", "reverse:ABCDE=", "ABCDE")]
    results = run_tasks(ar_denoiser(parent), parent.tokenizer, examples, Fixed(1), 16, 2)
    assert list(results["correct"]) == [True, False] and list(results["output"]) == ["EDCBA"] * 2
    assert list(results["tokens"]) == list(results["nfe"]) == [6, 6]  # five letters and EOS
    assert list(results["answer_tokens"]) == [5, 5]


def test_thresholds_are_chosen_on_validation_items_to_come_nearest_to_the_targets(parent, monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "evaluation_set", lambda split, n, families: asked.append(split) or [])
    tpf = {0.9: 1.2, 0.5: 2.2, 0.2: 3.1}

    def fake(denoiser, tokenizer, examples, decoder, *_):
        return pd.DataFrame({"tokens": [tpf[decoder.threshold]], "nfe": [1.0]})

    monkeypatch.setattr("dlm.evaluation.calibration.run_tasks", fake)
    cfg = config("evaluation.thresholds=[0.9,0.5,0.2]", "evaluation.tpf_targets=[2.0,4.0]")
    settings = evaluation_of(cfg.evaluation, cfg.data)
    chosen = calibrate(ar_denoiser(parent), parent, settings)
    assert {name: decoder.threshold for name, decoder in chosen.items()} == {"TPF≈2": 0.5, "TPF≈4": 0.2}
    assert asked == ["val"]
    assert calibrate(ar_denoiser(parent), parent, replace(settings, tpf_targets=[])) == {}


@pytest.mark.parametrize(("asked", "timed"), [(1, 1), (9, 9), (20, 18)])
def test_no_more_prompts_are_timed_than_are_asked_for_and_as_many_of_each_family(parent, monkeypatch, asked, timed):
    requests = []
    monkeypatch.setattr(Fixed, "generate", lambda self, denoiser, request: requests.append(request) or [])
    cfg = config(f"evaluation.throughput_prompts={asked}")
    assert decoding_timer(ar_denoiser(parent), parent, Fixed(1), evaluation_of(cfg.evaluation, cfg.data))() == 0
    assert [len(request.prompts) for request in requests] == [timed]


def test_throughput_measures_contestants_in_turns():
    calls = []
    contestants = {name: lambda name=name: calls.append(name) or 10 for name in "ab"}
    found = interleaved(contestants, repeats=3, device=torch.device("cpu"))
    assert calls == list("ab") * 4 and set(found) == {"a", "b"} and min(found.values()) > 0


@pytest.mark.parametrize(("threads", "expected"), [(1, "cpu"), (2, "wall")])
def test_throughput_of_one_thread_does_not_count_what_others_compute(monkeypatch, threads, expected):
    clocks = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(throughput, "clock_of", lambda device, name: clocks.append(name) or itertools.count().__next__)
    assert interleaved({"a": lambda: 12}, 2, torch.device("cpu")) == {"a": 12.0}
    assert clocks == [expected]


def test_the_headline_and_the_labels_of_a_record():
    setting = {"name": "TPF≈2", "accuracy": 0.5, "tpf": 1.9, "threshold": 0.8}
    record = {
        "train": {"val/nelbo": 1.5},
        "drift": {"ffn/relative": 0.2},
        "evaluation": {"dlm": {"generation": [setting]}},
    }
    assert headline(record) == {"val NELBO": 1.5, "accuracy, TPF≈2": 0.5, "TPF, TPF≈2": 1.9, "drift ffn": 0.2}
    assert headline({"status": "running"}) == {}
    assert label("dLM", setting) == "dLM, TPF≈2 (τ=0.8)" and label("parent", setting) == "parent"


@pytest.mark.trains
def test_the_parents_card_repeats_its_record(parent, tmp_path):
    run = Run(tmp_path / "abc")
    parent.model.save_pretrained(run.model_folder)
    parent.tokenizer.save_pretrained(run.model_folder)
    setting = {"accuracy": 0.961, "low": 0.95, "high": 0.97, "n": 18, "name": "1 token/step"}
    found = {
        "likelihood": {"nats": 2.0, "standard_error": 0.1, "bits_per_byte": 1.1, "tokens": 10},
        "generation": [setting | {"families": dict.fromkeys(tasks.FAMILIES, setting)}],
        "cloze": 0.79,
        "cloze_items": 100,
    }
    settings = {"length": 64, "likelihood_rows": 2, "batch_size": 2}
    data = {"mixture": {"tasks": 0.7, "prose": 0.3}, "length": 128, "batch_size": 32}
    (run.folder / "config.yaml").write_text(json.dumps({"data": data, "lr": 2e-3, "seed": 0}))
    run.update(
        evaluation={"dlm": found, "settings": settings},
        choices={"pretrain": "embedded"},
        parent={"source": "a random model"},
        parameters=1_115_520,
        tokens=16_003_072,
        steps=3907,
        train_seconds=2220.0,
        machine={"cpus": 2},
        versions=dict.fromkeys(("python", "torch", "transformers", "lightning"), "1"),
    )
    text = card(FinishedRun(run))
    assert "1,115,520 parameters" in text and "| **all** | 96.1% | 95.0% – 97.0% | 18 |" in text
    assert "pretrain=embedded" in text and "| from | a random model |" in text and "(9 families," in text
    assert "37 minutes" in text and f"Perplexity {np.exp(2):.2f}" in text and text.count("| 96.1% |") == 10
