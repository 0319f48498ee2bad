"""The denoiser's invariants on several architectures: AR limit, parity of training and decoding, the token shift."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from common import CACHEABLE, CLEAN, MASK_ID, config, denoiser, options, random_batch, tiny
from contracts import training_is_decoding
from torch.nn.functional import cross_entropy

from dlm.config.build import make
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import corrupt, lay_out, prepare
from dlm.conversion.selfcheck import is_ar_limit
from dlm.loss.base import PER
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.types import Batch, Noised, Scored, generator

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def score_all(scorer, batch: Batch, masked=None):
    """Logits of every position that can be scored (or of `masked`), with those positions hidden."""
    masked = scorer.scorable(batch).maskable if masked is None else masked
    noised = Noised(torch.where(masked, scorer.mask_id, batch.x0), masked, masked.float())
    inputs, scored = scorer.inputs(batch, noised)
    return scorer(inputs), scored


@pytest.mark.parametrize("pattern", CLEAN)
def test_ar_limit_gives_the_parents_likelihood(model, pattern):
    """Block size 1 with the shift and a clean stream is the parent, over the vocabulary without the mask token (I1)."""
    batch = random_batch(2, 24)
    scorer = denoiser(model, pattern, 1, True)
    if not is_ar_limit(scorer):
        pytest.skip("it does not see everything that is earlier")
    got, scored = score_all(scorer, batch)
    logits = model(input_ids=batch.x0).logits[:, :-1]
    logits[..., MASK_ID] = -torch.inf
    expected = cross_entropy(logits.flatten(0, 1), batch.x0[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(cross_entropy(got, scored.target, reduction="none"), expected, **EXACT)


def test_packed_documents_are_scored_as_if_alone(model):
    scorer = denoiser(model, "block", 4, False)
    batch = random_batch(1, 20, [8, 12])
    masked = (batch.x0 + batch.position) % 3 == 0
    together, _ = score_all(scorer, batch, masked)
    apart = []
    for start, end in ((0, 8), (8, 20)):
        alone = Batch(*(getattr(batch, n)[:, start:end] for n in ("x0", "maskable", "document", "position")))
        apart.append(score_all(scorer, alone, masked[:, start:end])[0])
    torch.testing.assert_close(together, torch.cat(apart), **EXACT)


def test_a_block_as_long_as_the_row_is_full_bidirectional_diffusion(model):
    """With one block, what is seen is the same as without blocks (I2)."""
    batch = random_batch(2, 16)
    masked = batch.x0 % 2 == 0
    for token_shift in (False, True):
        one_block, bidir = (
            score_all(denoiser(model, name, 16, token_shift), batch, masked & (batch.position > 0))[0]
            for name in ("block", "bidir")
        )
        torch.testing.assert_close(one_block, bidir, **EXACT)


@pytest.mark.whole
@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize(("name", "token_shift"), CACHEABLE)
def test_training_logits_equal_decoding_logits_of_every_block(full_or_sliding, name, token_shift, size):
    """All streams in one forward = the finished blocks in a cache, then a partially masked block (I3)."""
    training_is_decoding(denoiser(full_or_sliding, name, size, token_shift))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "token_shift"), CACHEABLE)
def test_training_logits_equal_decoding_logits_on_every_architecture(model, name, token_shift):
    """The noisy stream scores a block as decoding does with the clean prefix in the cache (I3)."""
    training_is_decoding(denoiser(model, name, 4, token_shift))


def test_the_first_token_of_a_block_is_scored_from_the_clean_stream(llama):
    """By hand, blocks of 4 in 8 tokens, S = 16: noisy row i-1 scores token i, but clean row 3 scores token 4 (C3)."""
    batch = random_batch(1, 8)
    masked = batch.position > 0
    inputs, scored = denoiser(llama, "block", 4, True).inputs(batch, Noised(batch.x0, masked, masked.float()))
    assert inputs.scored.tolist() == [0, 1, 2, 8 + 3, 4, 5, 6]
    assert scored.target.tolist() == batch.x0[0, 1:].tolist()
    inputs, _ = denoiser(llama, "block_noisy", 4, True).inputs(batch, Noised(batch.x0, masked, masked.float()))
    assert inputs.scored.tolist() == [0, 1, 2, 3, 4, 5, 6]
    inputs, _ = denoiser(llama, "block", 4, False).inputs(batch, Noised(batch.x0, masked, masked.float()))
    assert inputs.scored.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_position_0_is_never_masked_with_the_shift(llama):
    batch = random_batch(3, 16, [8, 8])
    for seed in range(5):
        prepared = prepare(denoiser(llama, "block", 4, True), Uniform(), batch, generator(seed))
        assert (batch.position.flatten()[prepared.scored.index] > 0).all()


def test_the_mask_token_is_never_predicted(model):
    logits, _ = score_all(denoiser(model, "block", 4, False), random_batch(1, 8))
    assert (logits[:, MASK_ID] == -torch.inf).all() and logits.isfinite().sum() == logits.numel() - len(logits)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("name", options("loss"))
def test_every_loss_is_a_fixed_sum_so_that_accumulation_does_not_change_it(name, per, llama):
    loss = make(config(f"loss={name}", f"loss.per={per}").loss)
    batch, scorer = random_batch(4, 16), denoiser(llama, "block", 4, False)
    batch.maskable[0, 3:] = False  # rows with few and with many tokens
    noised = corrupt(scorer, Uniform(), batch, generator(0))

    def loss_of(part):
        half, noise = (type(x)(*(t if t is None else t[part] for t in vars(x).values())) for x in (batch, noised))
        return Objective(loss)(scorer, lay_out(scorer, half, noise, Objective(loss)))[0].loss

    halves = torch.stack([loss_of(slice(0, 2)), loss_of(slice(2, 4))])
    torch.testing.assert_close(loss_of(slice(0, 4)), halves.mean())


def test_losses_by_hand():
    """Two masked tokens out of four, logits (ln 1, ln 3): probabilities 1/4 and 3/4; weights 2 and 4."""
    logits = torch.tensor([[1.0, 3.0], [1.0, 3.0]]).log()
    batch = random_batch(1, 4)
    batch.maskable[0, 1] = False
    masked = torch.tensor([[True, False, False, True]])
    noised = Noised(batch.x0, masked, torch.tensor([[2.0, 0, 0, 4.0]]))
    a, b = -torch.tensor([0.25, 0.75]).log()

    def loss_of(*overrides):
        loss = make(config(*overrides).loss)
        scored = Scored(torch.tensor([0, 1]), noised.weight[masked], torch.tensor([0, 3]))
        return loss(logits, replace(scored, loss_weight=loss.weights(batch, noised)[masked]), 4).loss

    torch.testing.assert_close(loss_of("loss=nelbo"), (2 * a + 4 * b) / 4)
    torch.testing.assert_close(loss_of("loss=mean"), (a + b) / 4)
    torch.testing.assert_close(loss_of("loss=mean", "loss.per=sequence"), (a + b) / 3)  # of three maskable ones
    torch.testing.assert_close(loss_of("loss=mean", "loss.per=masked", "loss.scale=0.5"), (a + b) / 2 / 2)
    # Token 0 sees token 1 at its side and token 2 beyond: (1/2) (1/2) (1 + 1/2); token 3 the same from its side.
    torch.testing.assert_close(loss_of("loss=cart", "loss.p=0.5"), 0.375 * (a + b) / 4)


def test_a_loss_of_its_own_per_token_is_weighted_and_the_logged_bound_stays_the_cross_entropy():
    """Logits (ln 1, ln 3) sum to 4 before the logarithm: a z-loss adds (ln 4)^2 to every token."""

    class ZLoss(Nelbo):
        def token_loss(self, nll, logits, target):
            return nll + logits.logsumexp(-1) ** 2

    logits = torch.tensor([[1.0, 3.0], [1.0, 3.0]]).log().requires_grad_()
    scored = Scored(torch.tensor([0, 1]), torch.tensor([2.0, 4.0]), torch.tensor([0, 3]))
    output, plain = ZLoss()(logits, scored, 4), Nelbo()(logits, scored, 4)
    torch.testing.assert_close(output.loss, plain.loss + (2 + 4) * math.log(4) ** 2 / 4)
    assert torch.equal(output.nll, plain.nll) and not output.nll.requires_grad
    output.loss.backward()
    by_hand = torch.tensor([2.0, 4.0])[:, None] * 2 * math.log(4) * torch.tensor([0.25, 0.75]) / 4
    (of_plain,) = torch.autograd.grad(plain.loss, logits)
    torch.testing.assert_close(logits.grad, of_plain + by_hand)


class Toy:
    """A conditional model of 3 binary tokens, given by a table: each row depends on the two other tokens, hidden (2) or
    not."""

    def __init__(self, seed):
        self.table = torch.randn(3, 3, 3, 2, generator=generator(seed), dtype=torch.float64).log_softmax(-1)

    def log_prob(self, x, masked, position):
        others = [2 if masked[i] else x[i] for i in range(3) if i != position]
        return self.table[position, others[0], others[1], x[position]].item()


def likelihood_of_block(toy, x, block):
    """The probability that decoding `block` one token at a time, in a uniformly random order, gives x."""
    paths = []
    for order in itertools.permutations(block):
        masked, log_prob = [i >= block[0] for i in range(3)], 0.0
        for position in order:
            log_prob += toy.log_prob(x, masked, position)
            masked[position] = False
        paths.append(math.exp(log_prob))
    return sum(paths) / len(paths)


def nelbo_of_block(toy, x, block):
    """The expected loss of a block: k uniform on 1..n, every k-subset alike, weight n / k (count=ceil)."""
    n, value = len(block), 0.0
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(block, k))
        for hidden in subsets:
            masked = [i in hidden or i > block[-1] for i in range(3)]
            value -= sum(toy.log_prob(x, masked, p) for p in hidden) * (n / k) / n / len(subsets)
    return value


@pytest.mark.parametrize("size", [1, 2, 3])
def test_nelbo_bounds_the_nll_and_equals_it_at_block_size_1(size):
    """NELBO bounds NLL from above, with equality in blocks of one token: enumerated over all 8 sequences (I9)."""
    toy, blocks = Toy(size), [list(range(3))[i : i + size] for i in range(0, 3, size)]
    nll = nelbo = 0.0
    for x in itertools.product(range(2), repeat=3):
        nll -= sum(math.log(likelihood_of_block(toy, x, block)) for block in blocks) / 8
        nelbo += sum(nelbo_of_block(toy, x, block) for block in blocks) / 8
    if size == 1:
        assert nelbo == pytest.approx(nll, abs=1e-12)
    else:
        assert nelbo > nll + 1e-3


def test_head_sees_only_the_scored_rows(llama):
    seen = []
    handle = llama.lm_head.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    prepared = prepare(denoiser(llama, "block", 4, False), Uniform(), random_batch(2, 16), generator(0))
    denoiser(llama, "block", 4, False)(prepared.inputs)
    handle.remove()
    assert seen == [(1, len(prepared.scored.index), 32)]


def test_soft_capping_after_the_head_is_the_models_own():
    capped = tiny("gemma3_text")
    capped.config.final_logit_softcapping = 2.0
    batch = random_batch(1, 12)
    got, _ = score_all(denoiser(capped, "ar", 1, True), batch)
    assert got.abs()[got.isfinite()].max() <= 2.0
    expected = capped(input_ids=batch.x0).logits[0, :-1]
    expected[:, MASK_ID] = -torch.inf
    torch.testing.assert_close(got, expected, **EXACT)


def test_cart_weighs_a_token_by_its_own_document_only():
    """Packed documents weigh as each by itself."""
    loss, packed = make(config("loss=cart").loss), random_batch(2, 16, documents=[10, 6])
    masked = torch.rand(2, 16, generator=generator(0)) < 0.5
    noised = Noised(packed.x0, masked, masked.float())
    expected = torch.zeros(2, 16)
    for begin, end in ((0, 10), (10, 16)):
        alone = random_batch(2, end - begin)
        part = Noised(alone.x0, masked[:, begin:end], masked[:, begin:end].float())
        expected[:, begin:end] = loss.weight(alone, part)
    torch.testing.assert_close(loss.weight(packed, noised), expected)
    assert (expected[masked] > 0).all() and (expected[~masked] == 0).all()
