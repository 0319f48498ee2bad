"""Every recipe has a limit case of its own: its composed config against the plain forwards of `naive_losses`."""

from dataclasses import replace

import pytest
import torch
from common import CONF, EOS_ID, MASK_ID, config, options, random_batch, tiny
from made_recipe import LENGTH, ROWS, SIZE, recipe
from naive_losses import (
    ar_nlls,
    bidirectional,
    by_block,
    cart,
    causal,
    level_of_token,
    nll,
    nlls_of,
    noisy_blocks,
    pairs,
    plain,
)
from omegaconf import OmegaConf
from torch.nn.functional import cosine_similarity

from dlm.config.build import make
from dlm.model.parent import load_parent
from dlm.types import Batch, Noised, generator

TOKENS = ROWS * LENGTH
EXACT = {"rtol": 1e-10, "atol": 1e-12}
SINGLE = {"rtol": 1e-6, "atol": 1e-7}  # likelihood weights are in float32


@pytest.fixture
def batch() -> Batch:
    """Rows with prompts of different lengths, one of which ends in a block."""
    batch = random_batch(ROWS, LENGTH)
    batch.maskable[0, :3] = False
    batch.maskable[1, :8] = False
    return batch


@pytest.mark.parametrize("name", options("recipe"))
def test_every_recipe_has_a_limit_case(name):
    assert any(test.startswith(f"test_{name}_") for test in globals()), f"write a test_{name}_... in this file"


@pytest.mark.trains
def test_none_changes_no_option():
    chosen, groups = config("recipe=none"), ("attention", "masking", "noise_level", "kernel", "loss", "optimizer")
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    names = {group: entry[group] for entry in defaults if OmegaConf.is_dict(entry) for group in entry}
    assert chosen == config("recipe=none", *(f"{group}={names[group]}" for group in groups))


def test_small_budget_with_blocks_of_one_token_is_the_ar_loss(batch):
    """It keeps the shift, so that a model that is not trained yet is its parent (I1)."""
    made = recipe("small_budget", "block_size=1")
    batch, noised = made.draw(batch)
    torch.testing.assert_close(made.loss(batch, noised)[0], ar_nlls(made.model, batch).sum() / TOKENS, **EXACT)


def test_efficient_dlm_is_the_naive_bound_and_at_vanishing_half_life_hides_suffixes(batch):
    made = recipe("efficient_dlm")
    batch, noised = made.draw(batch)
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, 0, SIZE))
    blocks = [t.view(ROWS, -1, SIZE).sum(2, keepdim=True) for t in (batch.maskable, noised.masked)]
    weight = (blocks[0] / blocks[1].clamp_min(1)).expand(-1, -1, SIZE).flatten(1)  # n / k of every block
    torch.testing.assert_close(made.loss(batch, noised)[0], (weight * nlls).sum() / TOKENS, **SINGLE)
    rightmost = recipe("efficient_dlm", "masking.half_life=1e-6", "masking.t_max=0.95")
    masked = rightmost.draw(random_batch(200, LENGTH))[1].masked.view(-1, SIZE).int()
    assert (masked.diff(dim=1) >= 0).all() and masked.sum(1).unique().numel() == SIZE


def test_efficient_dlm_with_blocks_of_one_token_and_the_shift_is_the_ar_loss(batch):
    """In blocks of one token with the shift, a model that is not trained yet is its parent (I1)."""
    made = recipe("efficient_dlm", "block_size=1", "token_shift=true")
    batch, noised = made.draw(batch)
    torch.testing.assert_close(made.loss(batch, noised)[0], ar_nlls(made.model, batch).sum() / TOKENS, **EXACT)


def test_dream_weighs_every_token_by_its_visible_neighbours(batch):
    made = recipe("dream")
    batch, noised = made.draw(batch)
    nlls = nlls_of(batch, noised, lambda x, xt: bidirectional(made.model, xt, 1))
    weight = torch.stack([cart(masked, made.cfg.loss.p) for masked in noised.masked])
    torch.testing.assert_close(made.loss(batch, noised)[0], (weight * nlls).sum() / TOKENS, **SINGLE)


def test_diffullama_is_the_mean_over_the_masked_tokens_of_a_row_of_1_over_t(batch):
    made = recipe("diffullama")
    batch, noised = made.draw(batch)
    nlls = nlls_of(batch, noised, lambda x, xt: bidirectional(made.model, xt, 1))
    assert made.levels.shape == (ROWS,)
    rows = nlls.sum(1) / noised.masked.sum(1) / made.levels
    torch.testing.assert_close(made.loss(batch, noised)[0], rows.mean(), **SINGLE)


def test_bd3lm_has_a_level_per_block_within_its_band_and_the_naive_loss(batch):
    made = recipe("bd3lm")
    batch, noised = made.draw(batch)
    assert made.levels.shape == (6,) and (made.levels > 0.3).all() and (made.levels <= 0.8).all()
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, 0, SIZE))
    expected = (nlls / level_of_token(batch, made.levels, SIZE)).sum() / TOKENS
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)


def test_sdar_has_one_level_per_sequence(batch):
    made = recipe("sdar")
    batch, noised = made.draw(batch)
    assert made.levels.shape == (ROWS,)
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, 0, SIZE))
    expected = (nlls.sum(1) / made.levels).sum() / TOKENS
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)
    recipe_of_packed = recipe("sdar")
    recipe_of_packed.draw(random_batch(ROWS, LENGTH, documents=[10, 6]))
    assert recipe_of_packed.levels.shape == (2 * ROWS,)


def test_fast_dllm_v2_scores_every_token_once_in_two_views(batch):
    made = recipe("fast_dllm_v2")
    batch, noised = made.draw(batch)
    first, second = noised.masked.chunk(2, 1)
    assert torch.equal(first ^ second, batch.maskable) and first.any() and second.any()
    views = [
        nlls_of(batch, Noised(xt, masked, weight), lambda x, xt: by_block(made.model, x, xt, 1, SIZE)).sum()
        for xt, masked, weight in zip(*(t.chunk(2, 1) for t in (noised.xt, noised.masked, noised.weight)), strict=True)
    ]
    torch.testing.assert_close(made.loss(batch, noised)[0], sum(views) / 2 / TOKENS, **EXACT)


def test_llada2_grows_shrinks_and_scores_both_views_with_the_entropy_of_right_predictions(batch):
    schedule = make(config("recipe=llada2").block_schedule)
    assert schedule.sizes == [1, 4, 32, 128, 32, 16]  # rows of 128, blocks of 16
    stages = [schedule((tenth + 0.5) / 10, generator(0)) for tenth in range(10)]
    assert stages == [1, 4, 32, 128, 128, 128, 128, 32, 16, 16]
    made = recipe("llada2")
    batch, noised = made.draw(batch)
    for row in range(ROWS):  # the first view is right in the last block, which no other reads
        hidden = noised.masked[row, :LENGTH] & (torch.arange(LENGTH) >= LENGTH - SIZE)
        batch.x0[row, hidden] = by_block(made.model, batch.x0[row], noised.xt[row, :LENGTH], 0, SIZE).argmax(-1)[hidden]
    noised = replace(noised, xt=torch.where(noised.masked, MASK_ID, batch.x0.repeat(1, 2)))
    assert (made.levels > 0.3).all() and (made.levels <= 0.8).all()
    t, expected, entropies = level_of_token(batch, made.levels, SIZE), 0.0, 0.0
    for xt, masked, level in zip(noised.xt.chunk(2, 1), noised.masked.chunk(2, 1), (t, 1 - t), strict=True):
        for row in range(ROWS):
            logits = by_block(made.model, batch.x0[row], xt[row], 0, SIZE)
            expected += (nll(logits, batch.x0[row], masked[row]) / level[row]).sum()
            right = masked[row] & (logits.argmax(-1) == batch.x0[row])
            log_p = logits[right][:, :MASK_ID].log_softmax(-1)
            entropies -= (log_p.exp() * log_p).sum()
    total, found = made.loss(batch, noised)
    assert entropies > 0.1
    torch.testing.assert_close(found["confidence"], entropies / (2 * TOKENS), **SINGLE)
    torch.testing.assert_close(total, (expected + 2.0 * entropies) / (2 * TOKENS), **SINGLE)


def test_nemotron_labs_diffusion_is_ar_and_three_tenths_of_diffusion_from_two_plain_forwards(batch):
    made = recipe("nemotron_labs_diffusion")
    batch, noised = made.draw(batch)
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, 0, SIZE, clean_causal=True))
    diffusion = (nlls / level_of_token(batch, made.levels, SIZE)).sum()
    expected = (ar_nlls(made.model, batch).sum() + 0.3 * diffusion) / TOKENS
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)


def all_masked(name, weight, batch, shift, noisy_causal, per="token"):
    """Everything hidden: the two parts of the loss from plain forwards, and no randomness."""
    made = recipe(name)
    batch, noised = made.draw(batch)
    assert torch.equal(noised.masked, batch.maskable) and torch.equal(noised.xt == MASK_ID, batch.maskable)
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, shift, SIZE, True, noisy_causal))
    per_row = batch.maskable.sum(1) if per == "sequence" else LENGTH
    expected = ((nlls + weight * ar_nlls(made.model, batch)).sum(1) / per_row).mean()
    found = made.loss(batch, noised)[0]
    torch.testing.assert_close(found, expected, **SINGLE)
    assert torch.equal(found, made.loss(*made.draw(batch, seed=1))[0])  # no 1/t of a level that hides nothing more


def test_tidar_hides_every_block_at_once_beside_the_ar_loss(batch):
    all_masked("tidar", 1.0, batch, shift=0, noisy_causal=False)


def test_idlm_drafts_from_left_to_right_beside_a_fifth_of_the_ar_loss(batch):
    all_masked("idlm", 0.2, batch, shift=1, noisy_causal=True)


def test_mars_drafts_from_left_to_right_and_averages_both_losses_over_sequences(batch):
    all_masked("mars", 1.0, batch, shift=1, noisy_causal=True, per="sequence")


def test_mars_scores_token_j_of_a_block_behind_j_masks_and_never_across_a_block_of_masks(batch):
    """The first token of a block is scored by the last clean one, as in decoding, and not by the last mask of the block
    before, from which it would be a block and a token away."""
    made = recipe("mars")
    batch, noised = made.draw(batch)
    logits = made.scorer(made.scorer.inputs(batch, noised)[0])
    for scored, (row, i) in zip(logits, noised.masked.nonzero().tolist(), strict=True):
        start = i // SIZE * SIZE
        shown = torch.cat([batch.x0[row, :start], noised.xt[row, start:i]])
        expected = made.model(shown[None]).logits[0, -1, :MASK_ID]
        torch.testing.assert_close(scored[:MASK_ID], expected, **EXACT)


def test_d2f_hides_ever_more_and_sees_earlier_blocks_as_corrupted(batch):
    made = recipe("d2f")
    batch, noised = made.draw(batch)
    first, second = made.levels.split([4, 2])  # a row of four blocks, and one whose prompt is two of them
    assert all((t > 0.2).all() and (t <= 0.7).all() and (t.diff() >= 0).all() for t in (first, second))
    nlls = nlls_of(batch, noised, lambda x, xt: noisy_blocks(made.model, xt, 1, SIZE))
    expected = (nlls / level_of_token(batch, made.levels, SIZE)).sum() / TOKENS
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)


def test_dmax_without_its_rollout_and_on_masked_tokens_alone_is_block_diffusion_at_three_quarters(batch):
    made = recipe("dmax", "masking.score=masked")
    batch, noised = made.draw(batch)
    torch.testing.assert_close(made.levels, torch.full((ROWS,), 0.75), rtol=0, atol=1e-4)
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, 0, SIZE))
    torch.testing.assert_close(made.loss(batch, noised)[0], nlls.sum() / TOKENS, **EXACT)


def test_dmax_whose_predictions_are_right_reconstructs_clean_text(batch, monkeypatch):
    made = recipe("dmax", "rollout.probability=1.0")
    batch, noised = made.draw(batch)
    monkeypatch.setattr(made.scorer, "predictions", lambda inputs: batch.x0[noised.masked])
    batch, filled = make(made.cfg.rollout)(made.scorer, batch, noised, generator(0))
    assert torch.equal(filled.xt, batch.x0) and not torch.equal(noised.xt, batch.x0)
    nlls = nlls_of(batch, filled, lambda x, xt: by_block(made.model, x, x, 0, SIZE), batch.maskable)
    torch.testing.assert_close(made.loss(batch, filled)[0], nlls.sum() / TOKENS, **EXACT)


def test_repr_align_pulls_the_states_of_every_layer_to_the_causal_ones(batch):
    made = recipe("repr_align", change=0.02)
    teacher = tiny("llama")
    batch, noised = made.draw(batch)
    nlls, far = nlls_of(batch, noised, lambda x, xt: bidirectional(made.model, xt, 1)), 0.0
    everything, before = pairs(LENGTH, lambda i, j: True), pairs(LENGTH, lambda i, j: j <= i)
    for x, xt, masked in zip(batch.x0, noised.xt, noised.masked, strict=True):
        own = plain(made.model, xt, everything, output_hidden_states=True).hidden_states
        its = plain(teacher, x, before, output_hidden_states=True).hidden_states
        rows = masked.nonzero()[:, 0] - 1
        layers = zip(own[1:], its[1:], strict=True)
        far += torch.stack([1 - cosine_similarity(a[0, rows], b[0, rows]) for a, b in layers]).mean(0).sum()
    expected = (nlls.sum() + 10.0 * far) / TOKENS
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)


def test_repr_align_is_at_its_goal_where_the_student_reads_what_its_teacher_reads(batch):
    made = recipe("repr_align", "attention=block", "block_size=1")
    assert abs(made.loss(*made.draw(batch))[1]["align"]) < 1e-12


def test_opdlm_is_the_teachers_divergence_on_its_own_text_alone(batch):
    made, teacher = recipe("opdlm", change=0.1), tiny("llama")
    rollout = make(made.cfg.rollout)
    rollout.eos_id, rollout.ends = EOS_ID, [EOS_ID]
    x0 = batch.x0
    batch, noised = rollout(made.scorer, *made.draw(batch), generator(0))
    assert not torch.equal(batch.x0, x0) and noised.masked.any()
    expected = 0.0
    for x, xt, masked in zip(batch.x0, noised.xt, noised.masked, strict=True):
        its, own = causal(teacher, x)[masked], by_block(made.model, x, xt, 0, SIZE)[masked]
        its, own = (logits[:, :MASK_ID].log_softmax(-1) for logits in (its, own))
        expected += (its.exp() * (its - own)).sum()
    torch.testing.assert_close(made.loss(batch, noised)[0], expected / TOKENS, **SINGLE)


def test_opdlm_has_no_loss_and_no_gradient_where_the_student_is_its_teacher(batch):
    """The text, which is what an AR loss would be of, gives none either."""
    made = recipe("opdlm", "block_size=1", "token_shift=true")
    loss = made.loss(*made.draw(batch))[0]
    loss.backward()
    gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
    assert abs(loss) < 1e-12 and gradients and max(g.abs().max() for g in gradients) < 1e-9


def test_ar_control_is_hugging_faces_own_loss(batch):
    """But for the mask token, of which Hugging Face's loss knows nothing: log(1 - its probability) in nats."""
    made = recipe("ar_control")
    batch = replace(batch, maskable=torch.ones_like(batch.maskable))
    output = made.model(batch.x0, labels=batch.x0)
    others = (1 - output.logits[:, :-1].softmax(-1)[..., MASK_ID]).log().mean()
    expected = (output.loss + others) * (LENGTH - 1) / LENGTH
    torch.testing.assert_close(made.loss(*made.draw(batch))[0], expected, rtol=1e-6, atol=0)


def test_untrained_is_efficient_dlm_from_other_weights_of_the_same_shapes():
    cfg, trained = config("recipe=untrained"), load_parent("pkg://dlm/assets/tiny").model.state_dict()
    own = make(cfg.model).model.state_dict()
    assert {name: t.shape for name, t in own.items()} == {name: t.shape for name, t in trained.items()}
    assert not any(torch.equal(own[name], t) for name, t in trained.items() if t.ndim > 1)
    efficient = OmegaConf.to_container(config("recipe=efficient_dlm"))
    assert OmegaConf.to_container(cfg) | {"model": None} == efficient | {"model": None}


def per_answer(made, batch, noised, shift=0, begin=0, **how):
    """1/t of the masked tokens, over the maskable tokens of each row, and then over the rows."""
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, shift, SIZE, begin=begin, **how))
    return nlls / level_of_token(batch, made.levels, SIZE, begin) / batch.maskable.sum(1, keepdim=True) / ROWS


def test_diffusionvl_averages_1_over_t_over_the_tokens_of_each_answer(batch):
    made = recipe("diffusionvl")
    batch, noised = made.draw(batch)
    torch.testing.assert_close(made.loss(batch, noised)[0], per_answer(made, batch, noised).sum(), **SINGLE)
    assert made.cfg.data.fill == "scored"


def test_diffusionvl_levels_do_not_grow_with_the_index_of_a_block():
    """Its code ties them to it where a device has one row."""
    made, order = recipe("diffusionvl"), []
    row = random_batch(1, 32 * SIZE)
    for seed in range(40):
        made.draw(row, seed)
        order.append(torch.corrcoef(torch.stack([made.levels, torch.arange(32.0)]))[0, 1])
    assert abs(torch.stack(order).mean()) < 0.1 and made.levels.unique().numel() == 32


@pytest.mark.trains
def test_bard_vl_begins_its_blocks_with_the_answer_and_halves_what_only_fills_one(batch):
    made, batch = recipe("bard_vl"), replace(batch, maskable=batch.position >= 3)
    fill = torch.zeros_like(batch.maskable)
    fill[:, -3:] = True
    batch, noised = made.draw(replace(batch, halved=fill))
    weighed = per_answer(made, batch, noised, begin=3)
    expected = weighed.sum() - weighed[fill].sum() / 2
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)
    assert made.cfg.data.fill == "halved" and noised.masked[fill].any()


def test_fast_dvlm_is_half_diffusion_and_half_ar_from_two_plain_forwards(batch):
    made = recipe("fast_dvlm")
    batch, noised = made.draw(batch)
    nlls = nlls_of(batch, noised, lambda x, xt: by_block(made.model, x, xt, 1, SIZE, clean_causal=True))
    expected = 0.5 * (nlls.sum() + ar_nlls(made.model, batch).sum()) / TOKENS
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)
    assert make(made.cfg.block_schedule)(0.0, generator(0)) == 1


def test_vlm_control_is_the_ar_loss_of_each_answer(batch):
    made = recipe("vlm_control")
    batch, noised = made.draw(batch)
    expected = (ar_nlls(made.model, batch).sum(1) / batch.maskable.sum(1)).mean()
    torch.testing.assert_close(made.loss(batch, noised)[0], expected, **SINGLE)
