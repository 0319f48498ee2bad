"""Mistakes that published code has made, or that are easily made: none of them here."""

from types import SimpleNamespace

import pytest
import torch
from common import EOS_ID, MASK_ID, config, denoiser, everyday, let_it_say, random_batch, tiny
from made_recipe import LENGTH, ROWS, recipe
from naive_losses import ar_nlls, pairs, plain

from dlm.config.build import make
from dlm.conversion.module import Conversion
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import prepare
from dlm.decoding.engine.commit import select_commits
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.decoding.pipelined import Pipelined
from dlm.decoding.threshold import Threshold
from dlm.exported.modeling_block_diffusion import CommitRule
from dlm.loss.mean import Mean
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.noise_level.full import Full
from dlm.types import generator

EXACT = {"rtol": 1e-10, "atol": 1e-12}
PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33]]


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pattern", ["block", "block_token_causal", "block_causal"])
def test_all_masked_blocks_of_one_token_with_the_shift_are_ar_in_loss_and_all_gradients(pattern):
    model, batch = tiny("llama"), random_batch(ROWS, LENGTH)
    batch.maskable[:, :3] = False
    scorer, masking, objective = denoiser(model, pattern, 1, True), Uniform(noise_level=Full()), Objective(Mean())
    prepared = prepare(scorer, masking, batch, generator(0), objective)
    loss, expected = objective(scorer, prepared)[0].loss, ar_nlls(model, batch).sum() / (ROWS * LENGTH)
    torch.testing.assert_close(loss, expected, **EXACT)
    ours, theirs = gradients(model, loss), gradients(model, expected)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, **EXACT)


def test_blocks_of_one_token_without_the_shift_are_a_causal_model_that_is_asked_with_one_mask(llama):
    """DiffusionVL at D = 1; this is not the AR head, whose row is one earlier."""
    batch, scorer = random_batch(1, 8), denoiser(llama, "block", 1, False)
    prepared = prepare(scorer, Uniform(noise_level=Full()), batch, generator(0))
    for i, scored in enumerate(scorer(prepared.inputs)):
        asked = torch.cat([batch.x0[0, :i], torch.tensor([MASK_ID])])
        expected = plain(llama, asked, pairs(i + 1, lambda q, k: k <= q)).logits[-1]
        torch.testing.assert_close(scored, expected, **EXACT)


@pytest.mark.parametrize("name", ["efficient_dlm", "nemotron_labs_diffusion"])
def test_the_noise_of_an_answer_depends_neither_on_its_blocks_place_nor_on_a_long_prompt(name):
    """BD3-LM's and DiffusionVL's antithetic levels, of one row at a time, grow with the block: behind a prompt of 15
    blocks, an answer of 5 would always have levels above 3/4."""
    made, batch = recipe(name), random_batch(1, 80)
    batch.maskable[:, :60] = False
    levels = []
    for seed in range(800):
        made.draw(batch, seed)
        levels.append(made.levels)
    levels = torch.stack(levels)
    assert levels.shape == (800, 5)
    assert (levels.mean(0) - 0.5).abs().max() < 4.5 * (1 / 12 / 800) ** 0.5
    assert (levels.min(0).values < 0.05).all() and (levels.max(0).values > 0.95).all()
    order = torch.arange(5.0).expand(800, -1)
    correlation = torch.corrcoef(torch.stack([levels.flatten(), order.flatten()]))[0, 1]
    assert abs(correlation) < 4.5 / 4000**0.5


@pytest.fixture
def conversion(llama, monkeypatch):
    """Of a trainer that is a rank among others and accumulates; what it logs is in `logged`."""
    made = Conversion(
        denoiser(llama, "block", 4, False), Uniform(), Objective(Nelbo()), make(config().optimizer), seed=0
    )
    trainer = SimpleNamespace(training=True, max_steps=10, accumulate_grad_batches=1, world_size=2)
    monkeypatch.setattr(Conversion, "trainer", trainer)
    monkeypatch.setattr(Conversion, "global_rank", 0)
    made.logged = {}
    made.log = lambda name, value, **_: made.logged.update({name: float(value)})
    return made


def test_ranks_draw_noise_of_their_own_and_each_the_same_again(conversion, monkeypatch):
    """Nemotron-Labs-Diffusion: +0.7 points."""
    batch, drawn = random_batch(ROWS, LENGTH), {}
    for rank in (0, 1, 0):
        monkeypatch.setattr(Conversion, "global_rank", rank)
        conversion.micro_batches = 0
        inputs = [conversion.on_before_batch_transfer(batch, 0)[0].inputs.input_ids for _ in range(2)]
        assert not torch.equal(*inputs)  # nor does a micro-batch repeat the one before
        if rank in drawn:
            assert all(torch.equal(a, b) for a, b in zip(inputs, drawn[rank], strict=True))
        drawn[rank] = inputs
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_the_logged_bound_is_in_nats_per_token_however_many_micro_batches_are_accumulated(conversion):
    """And whatever the loss is scaled by."""
    batch, found = random_batch(ROWS, LENGTH), []
    batch.maskable[:, :3] = False
    for accumulate, scale in ((1, 1.0), (8, 1.0), (8, 0.3)):
        conversion.trainer.accumulate_grad_batches, conversion.micro_batches = accumulate, 0
        conversion.objective = Objective(Nelbo(scale=scale))
        (prepared,) = conversion.on_before_batch_transfer(batch, 0)
        conversion.training_step([prepared], 0)
        found.append(conversion.logged["train/nelbo"])
    nll = torch.nn.functional.cross_entropy(
        conversion.denoiser(prepared.inputs), prepared.scored.target, reduction="none"
    )
    expected = float((prepared.scored.weight * nll.detach()).sum() / batch.maskable.sum())
    assert found == pytest.approx([expected] * 3, rel=1e-6)


@pytest.mark.parametrize("name", ["mars", "idlm", "tidar"])
def test_what_hides_everything_has_no_random_factor(name):
    """MARS's code without its AR loss scales every sequence by 1/t of a t that hides nothing more or less."""
    made, batch = recipe(name), random_batch(ROWS, LENGTH)
    losses = [made.loss(*made.draw(batch, seed))[0] for seed in range(3)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("add_at", "token_shift"),
    everyday([(0.5, True), (0.0, False), (1.0, False), (0.5, False), (0.0, True), (1.0, True)], 3),
)
def test_pipelined_decoding_of_one_block_is_threshold_decoding_wherever_blocks_are_added(llama, add_at, token_shift):
    """D2F with a block as long as the canvas."""
    scorer = denoiser(llama, "block_noisy", 32, token_shift)
    for threshold in (0.1, 0.3, 1.0):
        sequential = Threshold(threshold).generate(scorer, Request(PROMPTS, 14, EOS_ID))
        assert Pipelined(threshold, add_at, 0.5).generate(scorer, Request(PROMPTS, 14, EOS_ID)) == sequential


@pytest.mark.parametrize("pattern", ["block", "bidir", "block_noisy"])
def test_a_threshold_of_one_is_static_decoding_one_token_per_forward(llama, pattern):
    """Also where several probabilities round to 1: none exceeds the threshold, and a tie has one winner."""
    scorer = denoiser(llama, pattern, 4, False)
    let_it_say(scorer, lambda scored, *args, **kwargs: torch.nn.functional.one_hot(scored % 50 + 2, 61) * 1000.0)
    dynamic, static = (d.generate(scorer, Request(PROMPTS, 14, None)) for d in (Threshold(1.0), Fixed(1)))
    assert [(g.tokens, g.nfe, g.step) for g in dynamic] == [(g.tokens, g.nfe, g.step) for g in static]
    assert all(sorted(g.step) == sorted(set(g.step)) for g in dynamic)


@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_of_equally_confident_tokens_the_leftmost_are_kept_and_no_more_than_asked(tokens_per_step):
    """In the engine and in an exported model. `topk` and `argmax` need not agree on which of several maxima it is."""
    confidence, open_ = torch.ones(1, 32), torch.ones(1, 32, dtype=torch.bool)
    open_[:, :5] = False
    expected = (torch.arange(32) >= 5) & (torch.arange(32) < 5 + tokens_per_step)
    keep, _ = select_commits(Fixed(tokens_per_step).rule, torch.zeros_like(open_), confidence, open_)
    assert torch.equal(keep[0], expected)
    rule = CommitRule(None, tokens_per_step, 0.0, 1.0, torch.tensor([EOS_ID]), None)
    _, exported = rule(torch.full((32,), 7), confidence[0], open_[0], False)
    assert torch.equal(exported, expected)
