"""The loss in chunks is the loss at once: value, gradients, and how many logits exist at a time."""

import pytest
import torch
from common import ARCHITECTURES, VOCAB, denoiser, random_batch, tiny
from torch import nn

from dlm.conversion.objective import Objective
from dlm.conversion.prepare import prepare
from dlm.loss.mean import Mean
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model import readout
from dlm.types import generator

ROWS = 3  # of a chunk


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(readout.CHUNK_BYTES, "cpu", ROWS * 4 * VOCAB)


def capped():
    """Soft-capping after the head, and a head that shares the embedding."""
    model = tiny("gemma3_text")
    model.config.final_logit_softcapping = 2.0
    return model


def step(model, value):
    model.zero_grad()
    output = value()
    (2.0 * output.loss).backward()  # the backward scales
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", [Nelbo(), Mean()], ids=["nelbo", "mean"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "capped"])
def test_the_loss_and_all_gradients_in_chunks_are_those_at_once(small_chunks, architecture, loss):
    """Computing the head and the loss in chunks changes neither the loss nor any gradient (I7)."""
    model = capped() if architecture == "capped" else tiny(architecture)
    scorer = denoiser(model, "block", 4, True)
    prepared = prepare(scorer, Uniform(), random_batch(2, 16), generator(0), Objective(loss))
    assert len(prepared.scored.target) > 2 * ROWS
    inputs, scored, size = prepared.inputs, prepared.scored, prepared.num_tokens
    got, gradients = step(model, lambda: scorer.loss(inputs, scored, loss, size))
    expected, plain = step(model, lambda: loss(scorer(inputs), scored, size))
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.nll, expected.nll, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(gradients[name], plain[name], rtol=1e-10, atol=1e-12, msg=name)


def test_no_more_logits_than_a_chunk_exist_at_a_time(small_chunks, llama):
    scorer, seen = denoiser(llama, "block", 4, False), []
    prepared = prepare(scorer, Uniform(), random_batch(2, 16), generator(0))
    hook = llama.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    scorer.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens)
    hook.remove()
    assert max(seen) == ROWS and sum(seen) == len(prepared.scored.target)


def test_a_frozen_head_gets_no_gradient_and_its_model_does(small_chunks):
    llama = tiny("llama")
    llama.lm_head.requires_grad_(False)
    scorer = denoiser(llama, "block", 4, False)
    prepared = prepare(scorer, Uniform(), random_batch(2, 16), generator(0))
    scorer.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).loss.backward()
    assert llama.lm_head.weight.grad is None
    assert llama.model.layers[0].mlp.up_proj.weight.grad.norm() > 0


def test_a_batch_without_a_masked_token_has_a_loss_of_zero():
    scorer = denoiser(tiny("llama"), "block", 4, False)
    batch = random_batch(1, 8)
    batch.maskable[:] = False
    prepared = prepare(scorer, Uniform(), batch, generator(0))
    output = scorer.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens)
    output.loss.backward()
    assert output.loss == 0 and len(output.nll) == 0


def test_the_head_alone_shares_its_modules_with_the_model_and_is_no_part_of_the_denoiser(llama):
    scorer = denoiser(llama, "block", 4, False)
    assert scorer.head.lm_head is llama.lm_head
    assert isinstance(llama.model, nn.Module) and llama.model.layers  # the model keeps its decoder
    assert not any(name.startswith("head") for name, _ in scorer.named_parameters())
