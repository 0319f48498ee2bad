"""Gated adapters: they act at masks only, are saved beside the parent, and are loaded with their gate."""

import json
from dataclasses import replace

import pytest
import torch
from adapters import disturb
from common import ARCHITECTURES, MASK_ID, denoiser, random_batch, tiny
from kept_tensors import kept_by_autograd
from safetensors.torch import load_file, save_file
from small_runs import small
from transformers import AutoModelForCausalLM

from dlm.config.build import ar_denoiser, converted_denoiser
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.export import export
from dlm.model.checkpointing import checkpoint_activations
from dlm.model.parent import load_parent
from dlm.runs.digest import weights_fingerprint
from dlm.runs.run import Run
from dlm.train import train
from dlm.trainable.gate import gate_of, restore_gated, save_model
from dlm.trainable.gated_lora import GatedLora
from dlm.trainable.lora import Lora
from dlm.trainer.step import Step
from dlm.trainer.traced import traced
from dlm.types import Noised

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]


TINY = "pkg://dlm/assets/tiny"


def gated(architecture: str = "llama", dtype=torch.float64, **options):
    model = GatedLora(4, 8, **options).apply(tiny(architecture, dtype), MASK_ID)
    disturb(model)
    return model


def masked_half(scorer, rows: int = 2):
    """Inputs in which half of every block of 4 is hidden."""
    batch = random_batch(rows, 16)
    masked = batch.maskable & (batch.position % 4 >= 2)
    return scorer.inputs(batch, Noised(torch.where(masked, MASK_ID, batch.x0), masked, masked.double()))[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_gated_adapters_leave_every_bit_of_a_model_that_reads_no_mask(architecture, dtype):
    ids = random_batch(2, 24).x0
    plain, adapted = tiny(architecture, dtype), gated(architecture, dtype)
    expected = plain(input_ids=ids).logits
    assert torch.equal(adapted(input_ids=ids).logits.view(torch.int8), expected.view(torch.int8))
    ids[:, 10] = MASK_ID
    ours, theirs = adapted(input_ids=ids).logits, plain(input_ids=ids).logits
    assert torch.equal(ours[:, :10], theirs[:, :10]) and (ours != theirs)[:, 10:].any(-1).all()


def test_a_zero_of_either_sign_keeps_it_where_the_gate_is_shut():
    gate = gate_of(gated())
    gate.is_mask = torch.tensor([[False, True]])
    found = torch.tensor([[[-0.0], [0.0]]]) + gate.zero_elsewhere(None, (), torch.tensor([[[torch.inf], [2.0]]]))
    assert found.flatten().tolist() == [0.0, 2.0] and bool(found.signbit()[0, 0, 0])


@torch.no_grad()
def test_ar_decoding_with_gated_adapters_is_the_parents_and_block_decoding_is_not(llama):
    prompts, adapted = [[5, 6, 7, 8, 9], [11, 12]], gated()
    ar = [denoiser(m, "ar", 1, True) for m in (llama, adapted)]
    assert Fixed(1).generate(ar[0], Request(prompts, 12, None)) == Fixed(1).generate(ar[1], Request(prompts, 12, None))
    blocks = [Fixed(1).generate(denoiser(m, "block", 4, True), Request(prompts, 12, None)) for m in (llama, adapted)]
    assert [g.tokens for g in blocks[0]] != [g.tokens for g in blocks[1]]


@torch.no_grad()
def test_decoding_with_gated_adapters_is_not_compiled_and_says_so_before_any_forward():
    steps, scorer = [], denoiser(gated(), "block", 4, False)
    with pytest.raises(ValueError, match="compile=true does not see which tokens gated adapters act at"):
        Fixed(1).generate(scorer, Request([[5, 6]], 4, compile=True, on_step=steps.append))
    assert steps == []


def test_a_gated_update_is_that_of_plain_lora_where_all_tokens_are_masks():
    plain = Lora(4, 8).apply(tiny("llama"), MASK_ID)
    adapted = gated()
    plain.load_state_dict(adapted.state_dict())
    ids = torch.full((1, 6), MASK_ID)
    assert torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@torch.no_grad()
def test_saved_and_loaded_gated_adapters_give_the_same_bits(architecture, tmp_path):
    adapted = gated(architecture, torch.float32, targets=["q_proj", "up_proj"])
    save_model(adapted, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    expected = tiny(architecture, torch.float32).state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in again.state_dict().items())  # plain transformers: the parent
    restore_gated(again, MASK_ID, tmp_path)
    inputs = [masked_half(denoiser(m, "block", 4, True)) for m in (adapted, again)]
    logits = [denoiser(m, "block", 4, True)(i) for m, i in zip((adapted, again), inputs, strict=True)]
    assert torch.equal(*logits)
    assert gate_of(again).adapters == gate_of(adapted).adapters


def test_only_safetensors_and_json_are_written_and_damage_is_named(tmp_path):
    save_model(gated(), tmp_path)
    folder = tmp_path / "gated_lora"
    assert sorted(p.name for p in folder.iterdir()) == ["adapters.json", "adapters.safetensors"]
    assert json.loads((folder / "adapters.json").read_text()).items() >= {"rank": 4, "targets": "all-linear"}.items()
    weights = load_file(folder / "adapters.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "adapters.safetensors")
    with pytest.raises(ValueError, match=r"gated adapters in .* are damaged \(its weights are another model's\)"):
        restore_gated(tiny("llama"), MASK_ID, tmp_path)
    (folder / "adapters.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"gated adapters in .* are damaged"):
        restore_gated(tiny("llama"), MASK_ID, tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_two_forwards_before_a_backward_are_those_of_each(checkpointing):
    """A layer that is computed again in the backward must find the masks of its own forward."""
    found = []
    for together in (False, True):
        model = gated().train()
        if checkpointing:
            checkpoint_activations(model)
        scorer = denoiser(model, "block", 4, True)
        first = masked_half(scorer)
        second = replace(first, input_ids=first.input_ids.flip(1))
        sums = (scorer(inputs)[:, :MASK_ID].sum() for inputs in (first, second))
        for total in [sum(sums)] if together else sums:
            total.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and all("lora_" in n for n in found[0])
    assert all(g.any() for g in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_a_layer_that_does_not_see_one_row_per_token_is_refused():
    model = gated()
    model(input_ids=torch.tensor([[5, 6, 7]]))
    with pytest.raises(ValueError, match=r"one row for each of \(1, 3\) tokens, and a layer has \(3,\)"):
        model.model.layers[0].mlp.up_proj(torch.ones(3, 32, dtype=torch.float64))


def test_the_memory_estimate_counts_what_gated_adapters_keep():
    model = gated(dtype=torch.float32).train()
    scorer = denoiser(model, "block", 4, False)
    got, _ = traced(scorer, Step(32, 1, "32-true", torch.device("cpu")), 2)
    real = kept_by_autograd(scorer, 2, 32)
    plain = kept_by_autograd(
        denoiser(tiny("llama", torch.float32).requires_grad_(False).train(), "block", 4, False), 2, 32
    )
    assert plain < 0.5 * real and 0.99 * real <= got <= 1.05 * real


@pytest.fixture
def run(runs_dir):
    cfg = small(runs_dir, "trainable=gated_lora", "trainable.rank=8", "lr=1e-2", "optimizer.warmup=0")
    return Run.load(train(cfg)["id"], runs_dir)


def test_a_gated_run_leaves_its_parent_as_it_was_and_is_loaded_with_its_gate(run, runs_dir, tmp_path):
    parent, found = load_parent(TINY, check=False), load_parent(str(run.trained_model()), check=False)
    own = parent.model.state_dict()
    assert all(torch.equal(t, own[n]) for n, t in load_file(run.model_folder / "model.safetensors").items())
    prompts = parent.tokenizer(["reverse:ABC=", "sum:1,2,3="])["input_ids"]
    ar = [Fixed(1).generate(ar_denoiser(p), Request(prompts, 8, None)) for p in (parent, found)]
    assert ar[0] == ar[1]
    dlm = converted_denoiser(run.config, found)
    plain = converted_denoiser(run.config, parent)
    assert Fixed(1).generate(dlm, Request(prompts, 8, None)) != Fixed(1).generate(plain, Request(prompts, 8, None))
    assert run.record["drift"]["attention/relative"] > 0 and run.record["drift"]["embedding/relative"] == 0
    with pytest.raises(ValueError, match="act only at mask tokens: a plain Hugging Face folder cannot express that"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_seal_and_the_fingerprint_of_a_gated_run_cover_its_adapters(run):
    before, path = weights_fingerprint(run.model_folder), run.model_folder / "gated_lora" / "adapters.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).add_(1)
    save_file(weights, path)
    assert weights_fingerprint(run.model_folder) != before
    assert run.damaged("model/") == ["model/gated_lora/adapters.safetensors"]


@pytest.mark.slow
def test_a_gated_run_is_a_parent_and_goes_on_as_one(run, runs_dir):
    parent = ("model=run", f"model.run={run.id}")
    child = ("trainable=gated_lora", "trainable.rank=8", "seed=1")
    again = Run.load(train(small(runs_dir, *parent, *child))["id"], runs_dir)
    assert again.record["parent"]["fingerprint"] != run.record["parent"]["fingerprint"]
    base, adapters = ("model.safetensors", "gated_lora/adapters.safetensors")
    before, after = ([load_file(r.model_folder / name) for r in (run, again)] for name in (base, adapters))
    assert all(torch.equal(t, before[1][n]) for n, t in before[0].items())
    assert not all(torch.equal(t, after[1][n]) for n, t in after[0].items())
    full = Run.load(train(small(runs_dir, *parent, "trainable=full"))["id"], runs_dir)
    assert (full.model_folder / adapters).exists()
    for wrong, said in (
        ("trainable=lora", "the parent has gated adapters"),
        ("trainable=gated_lora", "to the parent's"),
    ):
        with pytest.raises(ValueError, match=said):
            train(small(runs_dir, *parent, wrong))
