"""Losses beside the diffusion loss: closed forms, limit cases, and that chunks and accumulation change nothing."""

import math

import pytest
import torch
from auxiliaries import EXACT, USES, gradients, objective_of, parent_of
from common import MASK_ID, VOCAB, config, denoiser, options, random_batch, tiny
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cosine_similarity, cross_entropy

from dlm.attention.ar import AR as ARPattern
from dlm.attention.bidir import Bidir
from dlm.auxiliary.align import Align
from dlm.auxiliary.ar import AR
from dlm.auxiliary.confidence import Confidence
from dlm.auxiliary.consistency import Consistency
from dlm.auxiliary.distill import DIVERGENCES, Distill
from dlm.auxiliary.teacher import Teacher
from dlm.config.build import build, make_objective
from dlm.config.values import train_settings
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import corrupt, lay_out, prepare
from dlm.loss.mean import Mean
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model import readout
from dlm.trainer.resources import fit_into_memory
from dlm.types import Scored, generator


def value_of(term, scorer, batch, masking=None, seed=0):
    """An auxiliary loss by itself."""
    objective = Objective(Mean(scale=0.0), {"it": term})
    return objective(scorer, prepare(scorer, masking or Uniform(), batch, generator(seed), objective))[1]["it"]


@pytest.mark.parametrize("name", options("auxiliary"))
def test_the_whole_objective_and_all_gradients_do_not_depend_on_chunks(monkeypatch, name):
    """The loss in chunks is the loss at once, and so are all gradients (I7)."""
    model = tiny("qwen3")
    pattern, masking = USES.get(name, ("block", Uniform()))
    scorer, objective = denoiser(model, pattern, 4, False), objective_of(name, model)
    torch.manual_seed(1)
    for p in model.parameters():  # a teacher that is not the student
        p.data += 0.05 * torch.randn_like(p)
    prepared = prepare(scorer, masking, random_batch(2, 16), generator(0), objective)
    at_once, plain = gradients(model, lambda: objective(scorer, prepared)[0].loss)
    monkeypatch.setitem(readout.CHUNK_BYTES, "cpu", 3 * 4 * VOCAB)
    in_chunks, chunked = gradients(model, lambda: objective(scorer, prepared)[0].loss)
    torch.testing.assert_close(in_chunks, at_once, **EXACT)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(chunked[parameter], gradient, **EXACT)
    without = Objective(objective.loss)(scorer, prepare(scorer, masking, random_batch(2, 16), generator(0)))[0].loss
    assert abs(at_once - without) > 1e-3  # it adds something


@pytest.mark.parametrize("name", options("auxiliary"))
def test_every_auxiliary_loss_of_a_batch_is_the_mean_of_its_micro_batches(name):
    model = tiny("llama")
    pattern, masking = USES.get(name, ("block", Uniform()))
    scorer, objective = denoiser(model, pattern, 4, False), objective_of(name, model)
    batch = random_batch(4, 16)
    batch.maskable[0, 2:] = False
    noised = corrupt(scorer, masking, batch, generator(0))

    def found(part):
        half, noise = (type(x)(*(t if t is None else t[part] for t in vars(x).values())) for x in (batch, noised))
        return objective(scorer, lay_out(scorer, half, noise, objective))[1][name]

    halves = torch.stack([found(slice(0, 2)), found(slice(2, 4))])
    torch.testing.assert_close(found(slice(0, 4)), halves.mean(), **EXACT)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("pattern", ["block_token_causal", "block_causal"])
def test_the_ar_loss_and_its_gradients_are_the_causal_models_own(model, pattern, views):
    """Against the model's plain causal forward, document by document."""
    batch = random_batch(2, 16, documents=[10, 6])
    batch.maskable[:, :3] = False
    objective = Objective(Mean(scale=0.0), {"ar": AR(1.0)})
    scorer = denoiser(model, pattern, 4, False)
    prepared = prepare(scorer, Uniform(views=views), batch, generator(0), objective)

    def plain():
        total = 0.0
        for row in range(2):
            for where in (slice(0, 10), slice(10, 16)):
                logits = model(batch.x0[row : row + 1, where]).logits[0, :-1]
                logits = logits.masked_fill(torch.arange(VOCAB) == MASK_ID, -torch.inf)
                nll = cross_entropy(logits, batch.x0[row, where][1:], reduction="none")
                total = total + nll[batch.maskable[row, where][1:]].sum()
        return total / (32 * views)

    ours, mine = gradients(model, lambda: objective(scorer, prepared)[0].loss)
    theirs, its = gradients(model, plain)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if "Gemma" in type(model).__name__ else EXACT  # its norms are in float32
    torch.testing.assert_close(ours, theirs, **tolerance)
    for name, gradient in its.items():
        torch.testing.assert_close(mine[name], gradient, **tolerance)


@pytest.mark.parametrize("pattern", ["block", "bidir", "block_noisy", "ar"])
def test_an_ar_loss_that_could_copy_is_refused(llama, pattern):
    with pytest.raises(ValueError, match="block_token_causal"):
        AR(1.0).check(denoiser(llama, pattern, 4, True).pattern, Uniform())


@pytest.mark.parametrize("views", [1, 2])
def test_an_ar_loss_per_sequence_is_the_mean_of_its_rows_means_however_many_tokens_they_have(llama, views):
    scorer, batch, masking = denoiser(llama, "block_causal", 4, False), random_batch(3, 16), Uniform(views=views)
    batch.maskable[0, :12], batch.maskable[1] = False, False
    rows = [type(batch)(*(t if t is None else t[n : n + 1] for t in vars(batch).values())) for n in range(3)]
    per_token = [value_of(AR(1.0), scorer, row, masking) for row in rows]  # sums divided by 16 tokens of each view
    means = [per_token[0] * 16 * views / 4, torch.zeros(()), per_token[2] * 16 * views / 15]  # the first is given
    found = value_of(AR(1.0, per="sequence"), scorer, batch, masking)
    torch.testing.assert_close(found, sum(means) / 3, rtol=1e-6, atol=1e-6, check_dtype=False)
    assert abs(found - value_of(AR(1.0), scorer, batch, masking)) > 0.1


def test_an_ar_loss_per_something_else_is_refused():
    with pytest.raises(ValueError, match="auxiliary.ar.per 'masked' is unknown: choose one of token, sequence"):
        AR(1.0, per="masked")


def test_a_balanced_ar_loss_has_its_share_of_the_diffusion_loss(llama):
    scorer, batch = denoiser(llama, "block_token_causal", 4, False), random_batch(2, 16)
    objective = Objective(Nelbo(), {"ar": AR(0.25, balance=True)})
    output, found = objective(scorer, prepare(scorer, Uniform(), batch, generator(0), objective))
    diffusion = Objective(Nelbo())(scorer, prepare(scorer, Uniform(), batch, generator(0)))[0].loss
    torch.testing.assert_close(output.loss, 1.25 * diffusion)
    assert found["ar"] > 0


def test_confidence_is_the_entropy_of_right_predictions_only():
    logits = torch.tensor([[1.0, 3.0, 0.0], [3.0, 1.0, 0.0]]).log()  # probabilities 1/4 and 3/4, the third is hidden
    scored = Scored(torch.tensor([1, 1]), torch.ones(2), torch.tensor([0, 1]))
    entropy = Confidence(1.0).of_logits(None, None, scored, None)(logits, slice(0, 2))
    by_hand = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(entropy, torch.tensor([by_hand, 0.0]))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_those_of_torch(name):
    p, q = (torch.randn(5, 7, generator=generator(seed), dtype=torch.float64).log_softmax(-1) for seed in (0, 1))
    a, b = Categorical(logits=p), Categorical(logits=q)
    middle = Categorical(probs=(a.probs + b.probs) / 2)
    expected = {
        "forward": kl_divergence(a, b),
        "reverse": kl_divergence(b, a),
        "js": (kl_divergence(a, middle) + kl_divergence(b, middle)) / 2,
    }[name]
    torch.testing.assert_close(DIVERGENCES[name](p, q), expected, **EXACT)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_that_is_its_ar_teacher_has_nothing_to_learn(model, name):
    """Blocks of one token with the shift are the parent (I1); with larger blocks there is something."""
    term = Distill(1.0, Teacher(ARPattern(), True), name)
    term.bind(parent_of(model))
    batch = random_batch(2, 16, documents=[10, 6])
    far = {size: value_of(term, denoiser(model, "block", size, True), batch).item() for size in (1, 4)}
    assert abs(far[1]) < 1e-6 and far[4] > 1e-2


def test_a_student_that_sees_all_of_one_block_is_its_bidirectional_teacher(llama):
    """D2F: without a prompt and with one block the asymmetry is gone; with two there is something to learn."""
    term = Distill(1.0, Teacher(Bidir(16), False), by_weight=True)
    term.bind(parent_of(llama))
    far = {size: value_of(term, denoiser(llama, "block_noisy", size, False), random_batch(2, 16)) for size in (16, 8)}
    assert abs(far[16]) < 1e-12 and far[8] > 1e-2


def test_an_ar_teacher_says_nothing_of_a_documents_first_token(llama):
    teacher = Teacher(ARPattern(), True)
    teacher.bind(parent_of(llama))
    scorer, batch = denoiser(llama, "block", 4, False), random_batch(1, 16, documents=[10, 6])
    noised = corrupt(scorer, Uniform(t_min=0.99), batch, generator(0))
    scored = scorer.inputs(batch, noised)[1]
    lesson = teacher.lesson(batch, noised, scored)
    assert scored.index[~lesson.valid].tolist() == [0, 10]


def test_a_teacher_is_frozen_and_stays_what_the_student_was(llama):
    model = tiny("llama")
    teacher = Teacher(ARPattern(), True)
    teacher.bind(parent_of(model))
    before = {n: p.clone() for n, p in teacher.denoiser.model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert all(torch.equal(p, before[n]) for n, p in teacher.denoiser.model.named_parameters())
    assert not any(p.requires_grad for p in teacher.denoiser.model.parameters())


def test_alignment_is_zero_where_student_and_teacher_read_the_same_and_the_mean_cosine_elsewhere(llama):
    term = Align(1.0, Teacher(ARPattern(), True))
    term.bind(parent_of(llama))
    batch = random_batch(2, 16)
    assert abs(value_of(term, denoiser(llama, "block", 1, True), batch)) < 1e-6
    scorer = denoiser(llama, "bidir", 4, True)
    prepared = prepare(scorer, Uniform(), batch, generator(0))
    student = llama(
        batch.x0.flatten().scatter(0, prepared.scored.index, MASK_ID).view(2, 16),
        attention_mask=torch.ones(2, 1, 16, 16, dtype=torch.bool),
        output_hidden_states=True,
    ).hidden_states
    teacher = llama(batch.x0, output_hidden_states=True).hidden_states
    rows = prepared.scored.index - 1
    layers = zip(student[1:], teacher[1:], strict=True)
    cosines = torch.stack([cosine_similarity(s.flatten(0, 1)[rows], t.flatten(0, 1)[rows], dim=-1) for s, t in layers])
    found = value_of(term, scorer, batch)
    torch.testing.assert_close(found.double(), (1 - cosines.mean(0)).sum() / 32, rtol=1e-5, atol=1e-6)


def test_the_view_that_sees_less_learns_from_the_one_that_sees_more(llama):
    scorer, batch = denoiser(llama, "block", 4, False), random_batch(4, 16)
    masking = Uniform(views=3)
    objective = Objective(Mean(scale=0.0), {"it": Consistency(1.0)})
    prepared = prepare(scorer, masking, batch, generator(0), objective)
    index, weight, better = prepared.scored.index, prepared.scored.weight, prepared.needs["it"].index
    logits = scorer(prepared.inputs)
    expected = 0.0
    for n in range(len(index)):
        same = (index == index[n]).nonzero()[:, 0]
        assert index[better[n]] == index[n] and weight[better[n]] == weight[same].max()
        p, q = (Categorical(logits=logits[i][:MASK_ID]) for i in (better[n], n))
        expected = expected + kl_divergence(p, q)
    assert (better != torch.arange(len(better))).any()
    found = objective(scorer, prepared)[1]["it"]
    torch.testing.assert_close(found, expected / (3 * 64), **EXACT)


def test_consistency_of_views_that_share_no_token_is_refused(llama):
    for masking in (Uniform(), Uniform(views=2)):
        with pytest.raises(ValueError, match="complementary=false"):
            Consistency(0.5).check(denoiser(llama, "block", 4, False).pattern, masking)


@pytest.mark.trains
def test_a_teacher_takes_its_share_of_the_memory_that_a_step_may_have(capsys):
    cfg = config("auxiliary=distill", "runtime.memory_gb=1.0", "data.batch_size=2", "tokens=4096")
    experiment = build(cfg)
    weights = sum(p.nbytes for p in experiment.parent.model.parameters())
    assert experiment.conversion.objective.nbytes == weights and make_objective(config()).nbytes == 0
    fit_into_memory(train_settings(cfg), experiment, pieces=1)
    left = 1 - weights / 1e9
    assert f"; {left:.2f} GB are available beside {weights / 1e9:.2f} GB of teachers" in capsys.readouterr().out
    cfg.runtime.memory_gb = weights / 1e9
    with pytest.raises(ValueError, match="0.00 GB are available"):
        fit_into_memory(train_settings(cfg), experiment, pieces=1)
