"""Masking schemes: the contract of every YAML, and the closed forms of the paper's schemes."""

import itertools
import json
import math

import pytest
import torch
from common import MASK_ID, PATTERNS, config, options, pattern_of, random_batch

from dlm.config.build import make
from dlm.masking.learned import Learned
from dlm.masking.position import Position
from dlm.masking.right_to_left import RightToLeft
from dlm.masking.uniform import Uniform
from dlm.noise_level.base import NoiseUnits
from dlm.noise_level.uniform import Uniform as UniformLevel
from dlm.types import Batch, generator

BLOCK = 8


def scheme(name, *overrides):
    return make(config(f"masking={name}", *overrides).masking)


def noise(masking, batch, seed=0, pattern="block"):
    return masking(batch, pattern_of(pattern, BLOCK).units(batch), MASK_ID, generator(seed))


def with_prompt(batch: Batch, length: int) -> Batch:
    return Batch(batch.x0, batch.maskable & (batch.position >= length), batch.document, batch.position)


@pytest.mark.parametrize("count", ["exact", "bernoulli", "ceil"])
@pytest.mark.parametrize("name", options("masking"))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_only_maskable_tokens_are_hidden_and_the_same_seed_gives_the_same_masks(name, count, pattern):
    batch = with_prompt(random_batch(4, 32, [20, 12]), 3)
    masking = scheme(name, f"masking.count={count}")
    once, again = (noise(masking, batch, 7, pattern) for _ in range(2))
    assert not (once.masked & ~batch.maskable).any()
    assert torch.equal(once.xt, torch.where(once.masked, MASK_ID, batch.x0))
    assert torch.equal(once.masked, again.masked) and torch.equal(once.weight, again.weight)
    assert not torch.equal(once.masked, noise(masking, batch, 8, pattern).masked) or pattern == "ar"
    assert ((once.weight > 0) == once.masked).all()


@pytest.mark.parametrize("count", ["exact", "bernoulli", "ceil"])
@pytest.mark.parametrize("name", options("masking"))
def test_unbiased_schemes_have_expected_weight_one_everywhere_and_biased_ones_say_so(name, count):
    masking = scheme(name, f"masking.count={count}", "masking.t_min=0.1")
    batch = with_prompt(random_batch(500, 2 * BLOCK), 3)
    draws = torch.stack([noise(masking, batch, seed).weight for seed in range(40)])
    mean = draws.double().mean((0, 1))
    error = draws.double().std((0, 1)) / math.sqrt(draws.shape[0] * draws.shape[1])
    deviation = ((mean - 1).abs() / error.clamp_min(1e-9))[3:]
    assert mean[:3].abs().max() == 0
    if masking.unbiased:
        assert deviation.max() < 4.5
    else:
        assert deviation.max() > 20


@pytest.mark.parametrize("pattern", ["block", "block_noisy", "bidir"])
def test_exact_count_hides_round_t_n_tokens_of_every_unit(pattern):
    masking = Uniform(count="exact", t_min=0.49, t_max=0.5)
    noised = noise(masking, random_batch(3, 32), pattern=pattern)
    per_unit = noised.masked.view(3, -1, 32 if pattern == "bidir" else BLOCK).sum(-1)
    assert (per_unit == (16 if pattern == "bidir" else 4)).all()


def test_bidir_has_one_level_per_document_and_blocks_their_own():
    batch = random_batch(64, 64)
    levels = {
        p: noise(Uniform(), batch, pattern=p).masked.view(64, -1, BLOCK).float().mean(-1) for p in ("bidir", "block")
    }
    assert levels["block"].std(1).mean() > 0.2 > levels["bidir"].std(1).mean()


def test_ar_hides_every_token_with_weight_one():
    noised = noise(Uniform(), random_batch(2, 16), pattern="ar")
    assert noised.masked.all() and (noised.weight == 1).all()


def test_noise_levels_are_stratified_and_carry_no_trace_of_the_block_index():
    units = NoiseUnits(torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.long))
    levels = torch.stack([UniformLevel()(units, 0.0, 1.0, generator(seed)) for seed in range(4000)])
    assert torch.equal(levels.mul(10).ceil().sort(1).values, torch.arange(1, 11).expand(4000, -1).float())
    assert (levels.mean(0) - 0.5).abs().max() < 4.5 * math.sqrt(1 / 12 / 4000)


def test_ceil_count_is_uniform_on_one_to_n():
    batch = random_batch(4000, BLOCK)
    counts = noise(Uniform(count="ceil", t_min=0.0), batch).masked.sum(1)
    assert torch.equal(torch.bincount(counts, minlength=BLOCK + 1), torch.tensor([0] + [500] * BLOCK))


@pytest.mark.parametrize("half_life", [0.25, 0.1, 0.05])
def test_position_masking_of_one_token_follows_equation_2(half_life):
    """With k = 1 the chance of position i is w_i / sum w, w_i = exp(beta (1 - t) i), beta = ln 2 / (half_life L')."""
    t = 1 / BLOCK
    batch = random_batch(40_000, BLOCK)
    masked = noise(Position(half_life, t_min=t - 1e-6, t_max=t), batch).masked
    beta = math.log(2) / (half_life * BLOCK)
    expected = torch.softmax(beta * (1 - t) * torch.arange(BLOCK, dtype=torch.float64), 0)
    got = masked.double().mean(0)
    assert ((got - expected).abs() / (expected * (1 - expected) / 40_000).sqrt()).max() < 4.5
    assert masked.sum(1).eq(1).all()


def test_half_life_is_the_fraction_of_the_block_over_which_the_weight_doubles():
    frequency = torch.softmax(math.log(2) / (0.25 * BLOCK) * torch.arange(BLOCK, dtype=torch.float64), 0)
    assert frequency[2] / frequency[0] == pytest.approx(2)  # a quarter of 8 positions on
    masked = noise(Position(0.25, t_min=0.0, t_max=1e-6), random_batch(60_000, BLOCK)).masked.double().mean(0)
    assert masked[2] / masked[0] == pytest.approx(2, rel=0.1)


def test_infinite_half_life_is_uniform_and_vanishing_half_life_is_right_to_left():
    batch = random_batch(20_000, BLOCK)
    uniform = noise(Position(1e9), batch).masked.double().mean(0)
    assert (uniform - uniform.mean()).abs().max() < 4.5 * math.sqrt(0.25 / 20_000)
    extreme, strict = (noise(m, batch, seed=3).masked for m in (Position(1e-4, t_max=0.95), RightToLeft(t_max=0.95)))
    assert torch.equal(extreme, strict)


def test_right_to_left_hides_a_suffix():
    masked = noise(RightToLeft(), random_batch(200, BLOCK)).masked.int()
    assert (masked.diff(dim=1) >= 0).all() and masked[:, -1].all()


@pytest.mark.parametrize("k", range(1, BLOCK))
def test_learned_masking_hides_each_position_as_often_as_its_table_says(k):
    """Order sampling is not exact, but close: Rosén's bound falls with k, and 8 positions are few."""
    masking = scheme("learned", f"masking.t_min={(k - 0.5) / BLOCK}", f"masking.t_max={k / BLOCK}")
    masked = noise(masking, random_batch(20_000, BLOCK)).masked.double()
    assert masked.sum(1).eq(k).all()
    assert (masked.mean(0) - masking.table[k - 1]).abs().max() < 0.02


def test_a_table_without_preference_is_uniform_masking(tmp_path):
    (tmp_path / "flat.json").write_text(
        json.dumps({"result": {"masked": [[0.25] * 4, [0.5] * 4, [0.75] * 4, [1.0] * 4]}})
    )
    masked = noise(Learned("flat.json", str(tmp_path)), random_batch(20_000, BLOCK)).masked.double().mean(0)
    assert (masked - masked.mean()).abs().max() < 4.5 * math.sqrt(0.25 / 20_000)


def test_a_table_of_another_block_size_is_read_at_the_same_relative_position(tmp_path):
    """The right half of a block of 2 is the last 4 positions of a block of 8."""
    (tmp_path / "half.json").write_text(json.dumps({"result": {"masked": [[1e-4, 0.9999], [1.0, 1.0]]}}))
    masked = noise(Learned("half.json", str(tmp_path), t_min=0.49, t_max=0.5), random_batch(500, BLOCK)).masked
    assert masked[:, 4:].double().mean() > 0.99 and masked[:, :4].double().mean() < 0.01


@pytest.mark.parametrize("text", ["{", "{}", '{"result": {"masked": [0.5]}}', '{"result": {"masked": [[0.0, 2.0]]}}'])
def test_what_is_no_trace_is_named(text, tmp_path):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=r"masking.trace '.*bad.json' (holds no decode trace|is damaged)"):
        Learned("bad.json", str(tmp_path))
    with pytest.raises(ValueError, match=r"none.json' holds no decode trace .FileNotFoundError.: make one with python"):
        Learned("none.json", str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["masking.t_min=0.6", "masking.t_max=0.5"], "t_min 0.6 and masking.t_max 0.5"),
        (["masking.t_min=-0.1"], "0 <= t_min"),
        (["masking.count=some"], "choose one of exact, bernoulli, ceil"),
        (["masking.half_life=0.0"], "half_life 0.0 must be > 0"),
    ],
)
def test_bad_values_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        scheme("position", *overrides)


@pytest.mark.parametrize("name", options("masking"))
@pytest.mark.parametrize("count", ["exact", "bernoulli", "ceil"])
def test_two_views_partition_the_maskable_tokens(name, count):
    """Complementary views partition the maskable tokens (I8)."""
    batch = with_prompt(random_batch(3, 32), 6)
    noised = noise(scheme(name, f"masking.count={count}", "masking.views=2"), batch)
    first, second = noised.masked.chunk(2, 1)
    assert torch.equal(first ^ second, batch.maskable) and not (first & second).any()
    assert torch.equal(noised.xt == MASK_ID, noised.masked)
    assert ((noised.weight > 0) == noised.masked).all()


def test_the_weight_of_a_complement_is_that_of_its_own_noise_level():
    """n = 8 tokens of which k = 2 are hidden: weight 8 / 2, and 8 / 6 for those that the other view hides."""
    batch = random_batch(1, 8)
    masking = Uniform(count="exact", t_min=0.249, t_max=0.251, views=2)
    first, second = noise(masking, batch).weight.chunk(2, 1)
    assert sorted(first[0].tolist()) == [0] * 6 + [4] * 2
    assert second[0].sort().values.tolist() == pytest.approx([0] * 2 + [8 / 6] * 6)


def test_more_than_two_views_are_independent_draws():
    noised = noise(Uniform(count="bernoulli", views=3), random_batch(64, 32))
    views = [v.flatten().double() for v in noised.masked.chunk(3, 1)]
    for a, b in itertools.combinations(views, 2):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.08


@pytest.mark.parametrize("views", [2, 3])
def test_every_view_that_is_counted_token_by_token_is_unbiased(views):
    masking = Uniform(count="bernoulli", t_min=0.1, t_max=0.9, views=views)
    assert masking.unbiased and not Uniform(count="exact", views=2).unbiased
    batch = random_batch(500, 2 * BLOCK)
    draws = torch.stack([noise(masking, batch, seed).weight for seed in range(20)]).double()
    error = draws.std((0, 1)) / math.sqrt(draws.shape[0] * draws.shape[1])
    assert ((draws.mean((0, 1)) - 1).abs() / error).max() < 4.5
