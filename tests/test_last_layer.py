"""The last layer's MLP works on what is read, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from common import MASK_ID, denoiser, random_batch, tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from dlm.conversion.prepare import prepare
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.last_layer import on_rows
from dlm.types import Noised, generator

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def prepared(scorer, masking=None):
    return prepare(scorer, masking or Uniform(), random_batch(3, 24, [10, 14]), generator(1))


def gradients(scorer, made, inputs):
    scorer.zero_grad()
    output = scorer.loss(inputs, made.scored, Nelbo(), made.num_tokens)
    output.loss.backward()
    return output, {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}


class Seen:
    """How many rows a module is given, forward by forward."""

    def __init__(self, module: nn.Module):
        self.rows = []
        module.forward = self.counting(module.forward)

    def counting(self, forward):
        def counted(hidden):
            self.rows.append(hidden.shape[:-1].numel())
            return forward(hidden)

        return counted


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", ["bidir", "block_noisy", "block"])
@pytest.mark.parametrize("views", [1, 2])
def test_loss_gradients_and_states_are_those_of_all_rows(model, pattern, token_shift, views):
    """Leaving rows out of the last MLP changes no loss, gradient or state (I7). With the shift, views that hide the
    same first token of a block are read from the same clean row."""
    scorer = denoiser(model, pattern, 4, token_shift)
    made = prepared(scorer, Uniform(views=views, complementary=False))
    inputs = made.inputs
    assert len(inputs.read) < inputs.input_ids.numel() and inputs.read.tolist() == sorted(set(inputs.scored.tolist()))
    (output, grads), (whole, whole_grads) = (gradients(scorer, made, i) for i in (inputs, replace(inputs, read=None)))
    torch.testing.assert_close(output.nll, whole.nll, **EXACT)
    assert grads.keys() == whole_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole_grads[name], **EXACT)
    for some, all_rows in zip(scorer.states(inputs), scorer.states(replace(inputs, read=None)), strict=True):
        torch.testing.assert_close(some, all_rows, **EXACT)


def test_rows_that_are_read_twice_are_in_the_test_above(llama):
    scorer = denoiser(llama, "block", 4, True)
    inputs = prepared(scorer, Uniform(views=2, complementary=False)).inputs
    assert len(inputs.read) < len(inputs.scored)


def test_only_the_last_layers_mlp_leaves_rows_out():
    model = tiny("llama")
    scorer = denoiser(model, "block", 4, False)
    inputs = prepared(scorer).inputs
    seen = [Seen(layer.mlp) for layer in model.model.layers]
    scorer.read(inputs), scorer.states(inputs)
    every = inputs.input_ids.numel()
    assert [s.rows for s in seen] == [[every] * 2, [every] * 2, [len(inputs.read)] * 2]
    scorer.read(replace(inputs, read=None))
    model(input_ids=inputs.input_ids)
    assert seen[-1].rows[2:] == [every] * 2, "what is not said to be read may be read"


def test_a_layer_that_is_computed_again_in_the_backward_has_all_rows():
    model = tiny("llama").train()
    scorer = denoiser(model, "block", 4, False)
    made = prepared(scorer)
    _, grads = gradients(scorer, made, made.inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert scorer.last_layer.rows(made.inputs) is None
    _, again = gradients(scorer, made, made.inputs)
    for name, grad in grads.items():
        torch.testing.assert_close(again[name], grad, **EXACT)
    model.eval()  # nothing is computed again
    assert scorer.last_layer.rows(made.inputs) is not None


@pytest.mark.trains
def test_layers_that_are_compiled_for_few_shapes_have_all_rows():
    model = tiny("llama")
    scorer = denoiser(model, "block", 4, False)
    scorer.compile(backend="eager")
    assert scorer.last_layer.rows(prepared(scorer).inputs) is None


@pytest.mark.parametrize(
    "config",
    [
        AutoConfig.for_model("bloom", vocab_size=61, hidden_size=32, n_layer=2, n_head=2),  # its MLP adds the residual
        AutoConfig.for_model(
            "opt", vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
            word_embed_proj_dim=32, max_position_embeddings=64,
        ),  # its MLP is no module
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_an_mlp_that_is_not_a_module_of_hidden_states_alone_has_all_rows(config, monkeypatch):
    """So its layer can be compiled for all shapes like the others."""
    scorer, compiled = denoiser(AutoModelForCausalLM.from_config(config), "block", 4, False), []
    assert scorer.last_layer.mlp is None
    monkeypatch.setattr(GradientCheckpointingLayer, "compile", lambda layer, **how: compiled.append(layer))
    scorer.compile(few_shapes=False)
    assert len(compiled) == 2


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss"])  # gpt_oss's MLP gives its router's scores as well
def test_a_mixture_of_experts_leaves_rows_out_as_well(architecture):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "head_dim": 16, "num_experts_per_tok": 2}
    shape |= {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=MASK_ID + 1, **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()  # experts know no float64
    scorer = denoiser(model, "bidir", 4, False)
    inputs = prepared(scorer).inputs
    seen = Seen(model.model.layers[-1].mlp)
    torch.testing.assert_close(scorer(inputs), scorer(replace(inputs, read=None)))
    assert seen.rows == [len(inputs.read), inputs.input_ids.numel()]


def test_a_forward_of_which_nothing_is_read_has_a_gradient_of_zeros(llama):
    scorer, batch = denoiser(llama, "block", 4, False), random_batch(1, 8)
    nothing = torch.zeros_like(batch.maskable)
    inputs = scorer.inputs(batch, Noised(batch.x0, nothing, nothing.float()))[0].settled()
    assert len(inputs.read) == 0
    scorer.read(inputs).sum().backward()
    assert not any(p.grad.any() for p in scorer.last_layer.mlp.parameters())


def test_rows_that_nobody_reads_are_zeros_and_hooks_go_even_after_an_error():
    mlp, hidden, rows = nn.Linear(4, 4), torch.randn(2, 3, 4), torch.tensor([1, 5])
    with on_rows(mlp, rows):
        made = mlp(hidden)
    torch.testing.assert_close(made.flatten(0, 1)[rows], mlp(hidden).flatten(0, 1)[rows])
    assert not made.flatten(0, 1)[[0, 2, 3, 4]].any()
    with pytest.raises(IndexError), on_rows(mlp, torch.tensor([6])):
        mlp(hidden)
    assert not mlp._forward_hooks and not mlp._forward_pre_hooks
