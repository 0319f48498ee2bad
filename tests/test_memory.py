"""The memory of a step, estimated before it runs."""

import re
from dataclasses import replace

import pytest
import torch
from common import ARCHITECTURES, CONF, VOCAB, config, denoiser, random_batch, tiny
from convertible import random_model
from kept_tensors import kept_by_autograd
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from dlm.attention import block_sparse, masks
from dlm.attention.block_sparse import loaded_as
from dlm.config.build import build
from dlm.config.values import train_settings
from dlm.conversion.prepare import prepare
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.checkpointing import checkpoint_activations
from dlm.trainable.qlora import Qlora
from dlm.trainable.quantised import packed_bytes
from dlm.trainer import memory
from dlm.trainer.memory import estimate, plan
from dlm.trainer.resources import fit_into_memory
from dlm.trainer.step import Step
from dlm.trainer.traced import traced
from dlm.types import Noised, generator

pytestmark = pytest.mark.trains  # or takes half a second

# Which experts a token goes to is not known beforehand, but how many there are for each is.
EXPERTS = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"attn": "eager", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
}
CPU = torch.device("cpu")
LENGTH = 32
STEP = Step(LENGTH, 1, "32-true", CPU)


class All(Uniform):
    """Everything is masked, as the estimate assumes."""

    def __call__(self, batch, units, mask_id, generator):
        masked = batch.maskable
        return Noised(torch.where(masked, mask_id, batch.x0), masked, masked.float())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("implementation", ["sdpa", "block_sparse", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_traced_bytes_are_those_that_autograd_keeps(architecture, implementation, rows, monkeypatch):
    monkeypatch.setattr(masks, "CHUNK", 16)  # so that block_sparse has several bands
    model = tiny(architecture, torch.float32).train()
    if implementation == "eager":
        model.set_attn_implementation("eager")
    block_sparse.set_implementation(model, implementation)
    scorer = denoiser(model, "block", 4, False)
    got, boundary = traced(scorer, STEP, rows)
    assert boundary == rows * 2 * LENGTH * 32 * 4
    real = kept_by_autograd(scorer, rows, LENGTH)
    assert 0.99 * real <= got <= 1.05 * real
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXPERTS)
def test_a_mixture_of_experts_is_traced_in_every_type(name, dtype):
    model = random_model(name, **EXPERTS[name]).to(dtype).train()
    scorer = denoiser(model, "block", 4, False)
    got, _ = traced(scorer, replace(STEP, precision="bf16-true" if dtype == torch.bfloat16 else "32-true"), 2)
    real = kept_by_autograd(scorer, 2, LENGTH)
    assert 0.9 * real <= got <= 1.1 * real


def test_a_run_whose_memory_cannot_be_known_is_tried(monkeypatch, capsys):
    cfg = config("data.batch_size=2", "tokens=4096", "runtime.activation_checkpointing=true")
    experiment = build(cfg)

    def fails(*_, **__):
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(experiment.denoiser.model.get_decoder(), "forward", fails)
    fit_into_memory(train_settings(cfg), experiment, pieces=1)
    assert (
        "not known (Qwen3ForCausalLM does not run without values: NotImplementedError: no meta kernel)"
        in capsys.readouterr().out
    )
    assert experiment.denoiser.model.is_gradient_checkpointing


def test_parts_of_an_estimate_by_hand():
    llama = tiny("llama", torch.float32)
    scorer = denoiser(llama, "block", 4, False)
    size = sum(p.numel() for p in llama.parameters())
    found = estimate(scorer, STEP, 2, checkpointing=False)
    assert (found.weights, found.gradients, found.optimizer) == (4 * size, 4 * size, 8 * size)
    assert estimate(scorer, STEP, 2, checkpointing=False, in_pieces=True).gradients == 8 * size
    assert estimate(scorer, replace(STEP, processes=2), 2, checkpointing=False).gradients == 8 * size
    layers = [sum(p.numel() for p in layer.parameters()) for layer in llama.get_decoder().layers]
    outside, largest = size - sum(layers), max(layers)
    sharded = estimate(scorer, replace(STEP, processes=4, sharded=True), 2, checkpointing=False)
    share = outside + sum(layers) / 4
    assert sharded.weights == 4 * (share + 2 * largest) and sharded.optimizer == 8 * share
    assert sharded.gradients == 4 * (share + largest)
    assert found.head == 5 * 2 * LENGTH * 4 * VOCAB + 4 * VOCAB * 32
    llama.requires_grad_(False)
    assert estimate(scorer, STEP, 2, checkpointing=False).optimizer == 0
    mixed = estimate(scorer, Step(LENGTH, 1, "bf16-mixed", CPU), 2, checkpointing=False)
    matrices = sum(p.numel() for p in llama.parameters() if p.ndim > 1)
    assert mixed.weights == 4 * size + 2 * matrices
    llama.requires_grad_(True)
    mixed = estimate(scorer, Step(LENGTH, 1, "bf16-mixed", CPU), 2, checkpointing=False)
    assert (mixed.gradients, mixed.optimizer) == (4 * size, 8 * size)  # of the weights, not of their copies
    assert estimate(scorer, Step(LENGTH, 1, "bf16-true", CPU), 2, checkpointing=False).weights == 2 * size


def test_matrices_in_four_bits_by_hand():
    """An adapted matrix of 32 x 128 has 4,096 entries in 2,048 bytes, 64 scales of a byte and one of four."""
    assert packed_bytes(4096) == 2048 + 64 + 4 + 4 * (16 + 256 + 1)
    assert packed_bytes(64 * 256 * 10) / (64 * 256 * 10) == pytest.approx(4.127 / 8, abs=0.01)
    llama = tiny("llama", torch.float32)
    trainable = Qlora(rank=2, alpha=4, beside=[])
    model = trainable.apply(llama, 0)
    matrices = trainable.quantised(model)
    assert len(matrices) == 7 * llama.config.num_hidden_layers
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    outside = sum(p.numel() for p in model.parameters()) - adapters - sum(m.numel() for m in matrices)
    packed, largest = sum(packed_bytes(m.numel()) for m in matrices), max(m.numel() for m in matrices)
    step, scorer = replace(STEP, quantised=frozenset(map(id, matrices))), denoiser(model, "block", 4, False)
    found = estimate(scorer, step, 2, checkpointing=False)
    assert found.weights == 4 * (outside + adapters) + packed + 4 * largest
    assert (found.gradients, found.optimizer) == (4 * adapters, 8 * adapters)
    outside_matrices = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" in n or "lm_head" in n)
    mixed = estimate(scorer, replace(step, precision="bf16-mixed"), 2, checkpointing=False)
    copies = 2 * (adapters + outside_matrices)  # what autocast makes of all that is not in four bits
    assert mixed.weights == 4 * (outside + adapters) + copies + packed + (4 + 2) * largest


@pytest.mark.parametrize(
    ("name", "precision", "checkpointing", "expected"),
    [
        ("random_1_5b", "bf16-mixed", False, 63.7),
        ("random_4b", "bf16-mixed", False, 142.6),
        ("random_8b", "bf16-mixed", True, 175.4),
        ("random_8b", "bf16-true", True, 85.3),
    ],
)
def test_the_sizes_of_real_models_on_a_gpu(name, precision, checkpointing, expected):
    """Rows of 4,096 tokens, one at a time, from float32 weights: in mixed precision 18 bytes a parameter (16, and 2 of
    the copy), the activations of two streams of half the bytes, and the head."""
    shape = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))["config"]
    shape_config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_config, attn_implementation=loaded_as("block_sparse"))
    scorer = denoiser(block_sparse.set_implementation(model, "block_sparse"), "block", 32, False)
    found = estimate(scorer, Step(4096, 1, precision, torch.device("cuda")), 1, checkpointing)
    assert found.total / 1e9 == pytest.approx(expected, abs=0.05)


def test_layers_are_computed_again_only_where_memory_is_short():
    scorer = denoiser(tiny("llama", torch.float32), "block", 4, False)
    plenty, short = (estimate(scorer, STEP, 64, way).total for way in (False, True))
    assert short < plenty
    assert not plan(scorer, STEP, 64, plenty).checkpointing
    assert plan(scorer, STEP, 64, plenty - 1).checkpointing
    assert plan(scorer, STEP, 64, plenty, checkpointing=True).checkpointing


@pytest.mark.parametrize("checkpointing", [None, False])
def test_a_batch_that_cannot_fit_is_refused_naming_the_largest_that_does(checkpointing):
    scorer = denoiser(tiny("llama", torch.float32), "block", 4, False)
    limit = estimate(scorer, STEP, 11, checkpointing=checkpointing is None).total
    with pytest.raises(ValueError, match=r"data\.batch_size 64 does not fit") as refused:
        plan(scorer, STEP, 64, limit, checkpointing)
    largest, accumulate = map(int, re.findall(r"batch_size=(\d+) trainer.accumulate=(\d+)", str(refused.value))[0])
    assert (largest, accumulate) == (11, 6)
    assert plan(scorer, STEP, largest, limit, checkpointing).estimate.total <= limit
    with pytest.raises(ValueError, match="not even data.batch_size=1"):
        plan(scorer, STEP, 64, 1000)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_computing_layers_again_changes_no_gradient(architecture):
    """But for the order of sums: the last layer, when it is computed again, multiplies another number of rows."""
    model = tiny(architecture).train()
    scorer = denoiser(model, "block", 4, True)
    prepared = prepare(scorer, All(), random_batch(2, 16), generator(0))
    found = []
    for way in (False, True):
        if way:
            checkpoint_activations(model)
        model.zero_grad()
        torch.manual_seed(0)  # dropout
        scorer.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
    scale = max(gradient.abs().max() for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-12, atol=1e-12 * float(scale), msg=name)


def test_what_is_available_is_more_than_this_process_holds():
    assert memory.available(CPU) > 2**27


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_plans_for_as_many_processes_as_train_it(devices, monkeypatch):
    steps, plan_of = [], memory.plan
    monkeypatch.setattr(memory, "plan", lambda scorer, step, *rest: steps.append(step) or plan_of(scorer, step, *rest))
    cfg = config(f"trainer.devices={devices}", "data.batch_size=2", "tokens=4096")
    fit_into_memory(train_settings(cfg), build(cfg), pieces=1)
    assert [step.processes for step in steps] == [devices]
