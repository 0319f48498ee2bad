"""Where noise levels come from, and what stands in the place of hidden tokens."""

import pytest
import torch
from common import MASK_ID, PATTERNS, config, options, pattern_of, random_batch

from dlm.config.build import make, make_masking
from dlm.masking.uniform import Uniform
from dlm.noise_level.base import NoiseUnits
from dlm.noise_level.full import Full
from dlm.noise_level.monotone import Monotone
from dlm.types import generator

BLOCK = 4


def noise(masking, batch, seed=0, pattern="block"):
    return masking(batch, pattern_of(pattern, BLOCK).units(batch), MASK_ID, generator(seed))


@pytest.mark.parametrize("name", options("noise_level"))
def test_levels_stay_in_their_band_and_the_same_seed_gives_the_same(name):
    level = make(config(f"noise_level={name}").noise_level)
    units = NoiseUnits(torch.arange(500) // 5, torch.full((500,), BLOCK))
    t = level(units, 0.2, 0.7, generator(0))
    assert (t == 1).all() if name == "full" else (t.min() > 0.2 and t.max() <= 0.7)
    assert torch.equal(t, level(units, 0.2, 0.7, generator(0)))


def test_monotone_levels_grow_within_a_document_and_reach_half_way_on_average():
    units = NoiseUnits(torch.arange(4000) // 4, torch.full((4000,), BLOCK))
    t = Monotone()(units, 0.2, 0.7, generator(0)).view(-1, 4)
    assert (t.diff(dim=1) >= 0).all() and t.max() <= 0.7
    reached = (t[:, -1] - t[:, 0]) / (0.7 - t[:, 0])
    assert abs(reached.mean() - 0.5) < 4.5 * (1 / 12 / 3 / 1000) ** 0.5  # three steps, each U(0, 1/3)
    alone = Monotone()(NoiseUnits(torch.arange(50), torch.ones(50).long()), 0.2, 0.7, generator(0))
    assert alone.unique().numel() == 50  # a document of one unit has a level of its own


@pytest.mark.trains
def test_monotone_noise_hides_ever_more_of_later_blocks_of_one_document_only():
    batch = random_batch(3000, 16, documents=[8, 8])
    masked = noise(Uniform(count="bernoulli", t_min=0.2, t_max=0.7, noise_level=Monotone()), batch).masked
    per_block = masked.view(-1, 4, BLOCK).float().mean((0, 2))
    assert per_block[1] > per_block[0] + 0.05 and per_block[3] > per_block[2] + 0.05
    assert abs(per_block[0] - per_block[2]) < 0.02  # the second document begins anew


def test_full_noise_hides_every_maskable_token_with_weight_one():
    batch = random_batch(2, 16)
    batch.maskable[:, :5] = False
    noised = noise(Uniform(noise_level=Full()), batch)
    assert torch.equal(noised.masked, batch.maskable) and (noised.weight[noised.masked] == 1).all()


@pytest.mark.parametrize("pattern", ["block", "block_noisy", "block_token_causal", "block_causal"])
def test_one_noise_level_may_be_shared_by_a_whole_document(pattern):
    batch = random_batch(400, 16)
    units = PATTERNS[pattern](block_size=BLOCK, noise_per="sequence").units(batch)
    assert (units.index.view(400, 16) == units.index[:, :1]).all()
    with pytest.raises(ValueError, match="noise_per 'row'"):
        PATTERNS[pattern](block_size=BLOCK, noise_per="row")


@pytest.mark.parametrize("name", options("kernel"))
def test_a_kernel_changes_hidden_tokens_only_and_never_to_an_id_outside_the_vocabulary(name):
    batch = random_batch(50, 16)
    noised = noise(make_masking(config("masking=uniform", f"kernel={name}")), batch)
    assert torch.equal(noised.xt[~noised.masked], batch.x0[~noised.masked])
    hidden = noised.xt[noised.masked]
    assert hidden.max() <= MASK_ID and hidden.min() >= 0 and (hidden != batch.x0[noised.masked]).float().mean() > 0.9
    again = noise(make_masking(config("masking=uniform", f"kernel={name}")), batch)
    assert torch.equal(noised.xt, again.xt)


@pytest.mark.parametrize(("name", "expected"), [("absorb", 0.0), ("mixture", 0.2), ("random", 1.0)])
def test_the_fraction_of_random_tokens_is_the_kernels(name, expected):
    noised = noise(make_masking(config("masking=uniform", f"kernel={name}")), random_batch(2000, 16))
    hidden = noised.xt[noised.masked]
    error = 4.5 * (expected * (1 - expected) / len(hidden)) ** 0.5
    assert abs((hidden != MASK_ID).float().mean() - expected) <= error


def test_all_maskable_tokens_may_be_scored_the_visible_ones_without_likelihood_weight():
    batch = random_batch(4, 16)
    batch.maskable[:, :3] = False
    noised = noise(Uniform(score="all"), batch)
    assert torch.equal(noised.scored, batch.maskable)
    assert (noised.weight[~noised.masked] == 0).all() and (noised.weight[noised.masked] > 0).all()


def test_two_views_that_are_not_complementary_are_independent_and_unbiased():
    masking = Uniform(count="bernoulli", views=2, complementary=False)
    first, second = noise(masking, random_batch(4000, 16)).masked.chunk(2, 1)
    both, apart = (first & second).float().mean(), first.float().mean() * second.float().mean()
    assert abs(both - apart) < 0.01 and both > 0.1
    assert masking.unbiased and Uniform(views=2, complementary=False).unbiased and not Uniform(views=2).unbiased
