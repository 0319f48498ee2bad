"""What fills the last block of a document is read and hidden as in decoding, and no loss scores it."""

from dataclasses import replace

import pytest
import torch
from common import CLEAN, EOS_ID, MASK_ID, PATTERNS, config, denoiser, everyday, option_yaml, options, random_batch
from made_recipe import LENGTH, ROWS, recipe
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from dlm.attention.block import Block
from dlm.auxiliary.ar import AR
from dlm.config.build import make
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import prepare
from dlm.data.packing import PackedRows, collate
from dlm.decoding.threshold import Threshold
from dlm.loss.base import PER
from dlm.loss.mean import Mean
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.parent import resolve
from dlm.model.trim import needed
from dlm.noise_level.full import Full
from dlm.rollout.trajectory import Trajectory
from dlm.types import Noised, generator

# What has losses that no recipe has.
MORE = {
    "consistency": ("sdar", "auxiliary=consistency", "masking.views=2", "masking.complementary=false"),
    "noise per sequence and two views": ("fast_dllm_v2", "attention.noise_per=sequence"),
}
EVERY = {name: (name,) for name in options("recipe")} | MORE


def filled(rows=ROWS, length=LENGTH, fill=5):
    """Rows whose last tokens are fill, in which the first are a prompt."""
    batch = random_batch(rows, length)
    return replace(batch, maskable=batch.position >= 3, fill=batch.position >= length - fill)


@pytest.mark.parametrize("name", everyday(EVERY, 6))
def test_no_recipe_has_a_loss_that_depends_on_what_the_fill_is(name):
    """Of a batch whose fill is hidden, as the loss would score it."""
    made = recipe(*EVERY[name], change=0.02)

    def losses(batch):
        batch, noised = made.draw(batch)
        hidden = noised.masked | (batch.position >= LENGTH - 5).repeat(1, noised.xt.shape[1] // LENGTH)
        noised = replace(noised, masked=hidden, xt=torch.where(hidden, MASK_ID, noised.xt))
        if batch.fill is None:
            noised = replace(noised, scored=None)
        total, auxiliary = made.loss(batch, noised)
        return torch.stack([total, *auxiliary.values()]).detach()

    batch = filled()
    other = replace(batch, x0=torch.where(batch.fill, batch.x0 % 50 + 3, batch.x0))
    assert torch.equal(losses(other), losses(batch))
    assert not torch.equal(losses(replace(other, fill=None)), losses(replace(batch, fill=None)))


@pytest.mark.parametrize("score", ["masked", "all"])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_fill_is_hidden_as_if_it_were_scored_and_is_in_no_loss(llama, score, views):
    scorer, batch, masking = denoiser(llama, "block", 4, False), filled(), Uniform(score=score, views=views)
    ours, plain = (
        masking(b, scorer.pattern.units(b), MASK_ID, generator(1)) for b in (batch, replace(batch, fill=None))
    )
    assert torch.equal(ours.xt, plain.xt) and torch.equal(ours.weight, plain.weight)
    fill = batch.fill.repeat(1, views)
    assert torch.equal(ours.in_loss, plain.in_loss & ~fill) and (plain.in_loss & fill).any()


@pytest.mark.parametrize("per", PER)
def test_a_mean_over_tokens_counts_those_that_are_scored(llama, per):
    """So the fill of a row does not make its loss smaller, and the logged bound is per token that can be scored."""
    scorer, batch = denoiser(llama, "block", 4, False), filled()
    found = prepare(scorer, Uniform(noise_level=Full()), batch, generator(0), Objective(Mean(per=per)))
    scored = LENGTH - 3 - 5
    assert len(found.scored.target) == found.num_maskable == ROWS * scored
    expected = 1.0 if per == "token" else LENGTH / scored
    torch.testing.assert_close(found.scored.loss_weight, torch.full((ROWS * scored,), expected))


def test_the_ar_loss_of_the_clean_stream_has_no_target_in_the_fill(llama):
    scorer, batch = denoiser(llama, "block_causal", 4, False), filled()
    for per in ("token", "sequence"):
        objective = Objective(Nelbo(), {"ar": AR(1.0, per=per)})
        needs = prepare(scorer, Uniform(), batch, generator(0), objective).needs["ar"]
        assert torch.equal(needs.target, batch.x0[:, 3:-5].flatten())
        assert needs.weight is None or (needs.weight == LENGTH / (LENGTH - 8)).all()


@pytest.mark.parametrize("name", [name for name in CLEAN if PATTERNS[name].noisy_stream])
def test_blocks_of_nothing_but_fill_are_not_read(llama, name):
    """16 tokens in blocks of 4, of which the last 5 are fill: the last noisy block and the last two clean ones."""
    scorer, batch = denoiser(llama, name, 4, False), filled(1, 16)
    inputs, _ = scorer.inputs(batch, Noised(batch.x0, batch.maskable, batch.maskable.float(), batch.targets))
    assert needed(inputs)[0].view(8, 4).all(1).tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 2


def test_the_tail_behind_a_models_own_eos_is_fill_of_a_rollout(llama):
    rollout = Trajectory(Threshold(0.1), batch_size=8)
    scorer, batch = denoiser(llama, "block", 4, False), filled(4, 32)
    rollout.eos_id, rollout.ends = EOS_ID, list(range(0, 60, 2))  # it ends soon
    noised = Uniform()(batch, scorer.pattern.units(batch), MASK_ID, generator(0))
    made, drawn = rollout(scorer, batch, noised, generator(0))
    ended = torch.isin(made.x0, torch.tensor(rollout.ends)) & made.maskable
    behind = (ended.cumsum(1) > 0) & ~(ended & (ended.cumsum(1) == 1))
    assert behind.any() and torch.equal(made.fill, behind)
    assert torch.equal(drawn.in_loss, drawn.masked & ~behind)
    made, drawn = rollout(scorer, replace(batch, fill=None), replace(noised, scored=None), generator(0))
    assert made.fill is None and torch.equal(drawn.in_loss, drawn.masked)


@pytest.mark.parametrize("data", ["embedded", "long"])
def test_the_data_of_every_yaml_marks_the_eos_behind_a_documents_own(data):
    """With fill=scored the same rows, without the mark."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("pkg://dlm/assets/tiny"))
    made = [make(config(f"data={data}", *more).data) for more in ([], ["data.fill=scored"])]
    for one in made:
        one.prepare(tokenizer, Block(16).tail, 20, seed=0)
    rows, plain = (one.train_rows for one in made)
    for n in range(20):
        row, same = rows[n], plain[n]
        assert all(torch.equal(getattr(row, f), getattr(same, f)) for f in ("x0", "maskable", "document", "position"))
        is_eos = row.maskable & (row.x0 == tokenizer.eos_token_id)
        follows = is_eos & is_eos.roll(1) & (row.document == row.document.roll(1)) & (row.position > 0)
        assert torch.equal(row.fill, follows) and same.fill is None
    batch = collate([rows[n] for n in range(20)])
    assert batch.fill.any() and torch.equal(batch.targets, batch.maskable & ~batch.fill)


def test_recipes_whose_publications_score_the_fill_do_so():
    recipes = {name: option_yaml("recipe", name) for name in options("recipe")}
    scored = {name for name, recipe in recipes.items() if OmegaConf.select(recipe, "data.fill") == "scored"}
    assert scored == {"d2f", "diffusionvl", "dmax", "mars"}


def test_another_fill_is_refused():
    with pytest.raises(ValueError, match=r"data\.fill 'maybe' is unknown: choose one of unscored, scored"):
        make(config("data.fill=maybe").data)


def test_rows_score_fill_unless_they_are_told_not_to():
    """So configs that lack the option train as they did."""
    assert PackedRows([], [], None, 8, 1, 1, 0, lambda *_: 0, 0).scores_fill
    cfg = config()
    del cfg.data.fill
    assert make(cfg.data).fill == "scored"
