"""A learned commit policy: what it looks at, what it learns, and that it decodes as it says."""

import json
import math

import numpy as np
import pytest
import torch
from common import MASK_ID, config, denoiser, logits_in_bfloat16, random_batch
from small_runs import small

from dlm import policy
from dlm.config.build import make
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.policy import FEATURES, Classifier, Policy, features
from dlm.measurement.base import Subject
from dlm.policy import Predictions, fit, learn, observe, quality, split
from dlm.runs.run import Run
from dlm.runs.storage import write_json
from dlm.train import train
from dlm.types import Batch, Noised, generator

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

LEARN = {"items_per_family": 2, "max_new_tokens": 8, "held_out": 0.5, "seed": 0}


def synthetic(count: int, seed: int = 0) -> torch.Tensor:
    """Features of random predictions, sharp ones and flat ones."""
    noise = generator(seed)
    sharpness = 8 * torch.rand(count, 1, generator=noise)
    logits = sharpness * torch.randn(count, 12, generator=noise)
    return features(logits, logits.argmax(-1)).double()


# --- what it looks at


def test_the_features_are_those_computed_by_hand():
    """Probabilities 1/2, 1/4, 1/8, 1/8 and a mask that is never predicted."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0], dtype=torch.float64).log() + 3
    entropy = (0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3) * math.log(2)
    got = features(logits.expand(2, 5), torch.tensor([0, 2]))
    expected = [[0.5, 0.25, entropy, math.log(2)], [0.125, 0.125 - 0.5, entropy, math.log(0.125 / 0.5)]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert len(FEATURES) == got.shape[-1]


def test_features_in_bfloat16_are_those_of_the_same_logits_in_float32():
    logits = logits_in_bfloat16()
    token = logits.argmax(-1)
    assert torch.equal(features(logits, token), features(logits.float(), token))


def test_features_of_a_certain_prediction_are_finite():
    certain = torch.tensor([0.0, -torch.inf, -torch.inf])
    assert features(certain, torch.tensor(0)).tolist() == [1.0, 1.0, 0.0, 50.0]


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", ["block", "block_noisy", "bidir"])
def test_observed_predictions_are_those_of_the_training_forward_on_every_state_of_the_decoding(
    llama, pattern, token_shift
):
    scorer, size, new = denoiser(llama, pattern, 4, token_shift), 4, 10
    prompts = [[5, 6], [7, 8, 9, 10, 11, 12]]  # prompt and answer fill whole blocks
    seen = observe(scorer, Request(prompts, new, None))
    expected = [
        (x, kept, number)
        for number, (prompt, made) in enumerate(
            zip(prompts, Fixed(1).generate(scorer, Request(prompts, new, None)), strict=True)
        )
        for x, kept in states(scorer, prompt, made, size)
    ]
    np.testing.assert_allclose(seen.x, np.stack([x for x, _, _ in expected]), rtol=1e-6, atol=1e-9)
    assert seen.kept.tolist() == [kept for _, kept, _ in expected]
    assert seen.prompt.tolist() == [number for _, _, number in expected]
    assert 0 < seen.kept.mean() < 1


def states(scorer, prompt, made, size):
    """The predictions at every state, without a cache: the whole canvas through the training forward."""
    final = torch.tensor([prompt + made.tokens])
    step = torch.tensor([0] * len(prompt) + made.step)
    layout, scored_first = random_batch(1, final.shape[1]), set()
    for forward in range(1, made.nfe + 1):
        hidden = step >= forward
        start = int(hidden.int().argmax()) // size * size
        end = start + size if scorer.pattern.cacheable else len(step)
        asked = hidden.clone()
        asked[start + size :] = False
        x = torch.where(hidden, MASK_ID, final)[:, :end]
        cut = Batch(*(t[:, :end] for t in (x, layout.maskable, layout.document, layout.position)))
        inputs, _ = scorer.inputs(cut, Noised(x, asked[None, :end], asked[None, :end].double()))
        for place, logits in zip(asked.nonzero()[:, 0].tolist(), scorer(inputs), strict=True):
            # The clean context scores the first token of a block once.
            if not (scorer.token_shift and scorer.pattern.cacheable and place in scored_first):
                yield features(logits, logits.argmax(-1)).detach().numpy(), bool(logits.argmax() == final[0, place])
            scored_first |= {place} if place % size == 0 else set()


def test_predictions_behind_the_end_of_an_answer_do_not_count(llama):
    """Each token of the answer is predicted from its block's first forward to the one that commits it."""
    scorer, prompt = denoiser(llama, "block", 4, False), [5, 6, 7]
    (whole,) = Fixed(1).generate(scorer, Request([prompt], 13, None))
    eos = whole.tokens[6]
    (made,) = Fixed(1).generate(scorer, Request([prompt], 13, eos))
    blocks = [(len(prompt) + i) // 4 for i in range(len(made.tokens))]
    begun = {b: max((s for s, own in zip(made.step, blocks, strict=True) if own < b), default=0) for b in blocks}
    expected = sum(step - begun[b] for step, b in zip(made.step, blocks, strict=True))
    assert made.tokens[-1] == eos and (len(prompt) + len(made.tokens)) % 4 != 0
    assert len(observe(scorer, Request([prompt], 13, eos)).x) == expected


# --- what it learns


def test_a_planted_rule_is_recovered():
    x = synthetic(4000)
    kept = (x[:, 0] - 2 * x[:, 1] > 0.1).numpy()  # two tokens share what there is
    seen = Predictions(x.numpy(), kept, np.arange(4000))
    fitted, held_out = split(4000, 0.25, 0)
    found = quality(fit(seen.of(fitted)), seen.of(held_out))
    assert found["auc"] > 0.999 and found["auc_of_probability"] < 0.9
    assert found["predictions"] == found["prompts"] == 1000


def test_planted_probabilities_are_recovered_and_calibrated():
    x = synthetic(40_000)
    truth = Classifier([2.0, 1.0, -1.0, 0.1], 0.5)
    kept = torch.rand(len(x), generator=generator(1), dtype=torch.float64) < truth(x)
    seen = Predictions(x.numpy(), kept.numpy(), np.arange(len(x)))
    fitted, held_out = split(len(x), 0.5, 0)
    classifier = fit(seen.of(fitted))
    assert (classifier(x) - truth(x)).abs().max() < 0.05
    found = quality(classifier, seen.of(held_out))
    assert sum(b["n"] for b in found["calibration"]) == found["predictions"]
    for b in found["calibration"]:  # within four standard errors
        assert abs(b["predicted"] - b["kept"]) < 4 * math.sqrt(b["predicted"] * (1 - b["predicted"]) / b["n"])


def test_the_quality_of_a_hand_worked_case():
    """Predictions 1/2 and 1/2 of a kept and a changed token: no order, and off by 1/2 each."""
    seen = Predictions(np.array([[0.9, 0, 0, 0], [0.2, 0, 0, 0.0]]), np.array([True, False]), np.array([3, 3]))
    found = quality(Classifier([0.0] * 4, 0.0), seen)
    assert (found["auc"], found["auc_of_probability"], found["brier"], found["prompts"]) == (0.5, 1.0, 0.25, 1)
    assert found["calibration"] == [{"predicted": 0.5, "kept": 0.5, "n": 2}]


def test_no_prompt_is_both_fitted_to_and_measured_on():
    fitted, held_out = split(20, 0.25, 0)
    assert (len(fitted), len(held_out)) == (15, 5) and fitted | held_out == set(range(20))
    assert split(20, 0.25, 1) != (fitted, held_out)
    for wrong in (0.0, 1.0, 0.01):
        with pytest.raises(ValueError, match=f"held_out {wrong} of 20 prompts leaves none"):
            split(20, wrong, 0)


@pytest.mark.parametrize(("kept", "said"), [(True, "kept"), (False, "changed")])
def test_predictions_that_are_all_alike_teach_nothing_and_that_is_said(kept, said):
    with pytest.raises(ValueError, match=f"all 3 predictions were {said}, so there is nothing to learn"):
        fit(Predictions(np.zeros((3, 4)), np.full(3, kept), np.arange(3)))


# --- how it decodes


@pytest.fixture
def file(tmp_path):
    Classifier([1.7, 0.3, -0.9, 0.21], -0.4).save(tmp_path / "policy.json")
    return str(tmp_path / "policy.json")


def test_a_policy_from_a_file_decides_as_the_one_that_was_saved(tmp_path):
    x = synthetic(2000)
    made = fit(Predictions(x.numpy(), (x[:, 0] > 0.6).numpy(), np.arange(2000)))
    made.save(tmp_path / "policy.json", run="abc")
    loaded = Policy(str(tmp_path / "policy.json"), 0.5).rule.classifier
    assert loaded == made and torch.equal(loaded(x.float()), made(x.float()))
    assert all(
        isinstance(v, (list, float, str, bool)) for v in json.loads((tmp_path / "policy.json").read_text()).values()
    )


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_it_commits_every_open_position_above_the_threshold_or_the_best(llama, file, threshold):
    """Of a block without context, which one forward predicts."""
    scorer = denoiser(llama, "block_noisy", 8, False)
    (made,) = Policy(file, threshold).generate(scorer, Request([[]], 8, None))
    batch = random_batch(1, 8)
    hidden = torch.full_like(batch.x0, MASK_ID)
    logits = scorer(scorer.inputs(batch, Noised(hidden, batch.maskable, batch.maskable.double()))[0])
    keep = Classifier([1.7, 0.3, -0.9, 0.21], -0.4)(features(logits, logits.argmax(-1)))
    expected = {i for i in range(8) if keep[i] > threshold} or {int(keep.argmax())}
    assert {i for i, step in enumerate(made.step) if step == 1} == expected
    for i in expected:
        assert made.confidence[i] == pytest.approx(keep[i].item(), rel=1e-6) and made.tokens[i] == logits[i].argmax()


@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_a_threshold_of_1_is_one_token_per_step_however_sure_the_policy_is(llama, tmp_path, threshold):
    Classifier([0.0] * 4, 100.0).save(tmp_path / "sure.json")
    scorer = denoiser(llama, "block", 4, False)
    (made,) = Policy(str(tmp_path / "sure.json"), threshold).generate(scorer, Request([[5, 6, 7, 8]], 12, None))
    assert made.nfe == 12 and sorted(made.step) == list(range(1, 13))
    (all_at_once,) = Policy(str(tmp_path / "sure.json"), 0.99).generate(scorer, Request([[5, 6, 7, 8]], 12, None))
    assert all_at_once.nfe == 3


def test_a_batch_gives_what_single_prompts_give(llama, file):
    """A ragged batch gives the tokens and the forwards of single prompts (I5)."""
    scorer, prompts = denoiser(llama, "block", 4, True), [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23]]
    batched = Policy(file, 0.4).generate(scorer, Request(prompts, 14, 0))
    assert batched == [Policy(file, 0.4).generate(scorer, Request([prompt], 14, 0))[0] for prompt in prompts]


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"features": ["luck"] * 4, "coefficients": [1.0] * 4, "intercept": 0.0},
        {"features": list(FEATURES), "coefficients": [1.0] * 3, "intercept": 0.0},
        {"features": list(FEATURES), "coefficients": ["__import__('os')"] * 4, "intercept": 0.0},
        {"features": list(FEATURES), "coefficients": [math.nan] * 4, "intercept": 0.0},
    ],
)
def test_a_file_that_is_missing_or_no_policy_is_named_with_the_command_that_makes_one(content, tmp_path):
    path = tmp_path / "policy.json"
    if content is not None:
        write_json(path, content)
    with pytest.raises(ValueError, match="holds no commit policy .*make one with python -m dlm.policy run=ID"):
        make(config("decoding=policy", f"decoding.policy={path}").decoding)


def test_a_policy_that_is_not_named_is_asked_for_before_any_training(runs_dir):
    with pytest.raises(ValueError, match="decoding.policy is not set, .* make one with python -m dlm.policy run=ID"):
        train(small(runs_dir, "decoding=policy", "decoding.policy=null"))


# --- the command


def test_a_runs_policy_is_learned_once_and_decodes_the_run(runs_dir, monkeypatch):
    run = Run.load(train(small(runs_dir, "lr=1e-3"))["id"], runs_dir)
    path = learn(run, LEARN)
    found = json.loads(path.read_text())
    assert path.parent == run.folder / "measurements" and found["run"] == run.id
    assert (found["fitted"]["prompts"], found["held_out"]["prompts"]) == (9, 9)
    assert 0.5 < found["held_out"]["auc"] <= 1
    monkeypatch.setattr(policy, "observe", lambda *_: pytest.fail("it was learned again"))
    assert learn(run, LEARN) == path
    subject = Subject(run)
    (made,) = Policy(str(path), 0.5).generate(
        subject.dlm, Request([[5, 6, 7]], 8, subject.converted.tokenizer.eos_token_id)
    )
    assert made.tokens and 1 <= made.nfe <= 16


def test_the_commands_config_names_what_learning_takes():
    cfg = config("run=none", name="policy")
    assert set(LEARN) <= set(cfg) and 0 < cfg.held_out < 1
