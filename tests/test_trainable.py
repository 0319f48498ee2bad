"""Which weights move: exactly those that are declared, and gated adapters only at masks."""

import json
import re
from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES, MASK_ID, as_before, config, denoiser, random_batch, text_options, tiny
from kept_tensors import kept_by_autograd
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from small_runs import small
from transformers import AutoModelForCausalLM

from dlm.config.build import ar_denoiser, build, converted_denoiser, make
from dlm.conversion.module import Conversion
from dlm.conversion.prepare import prepare
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.export import export
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.checkpointing import checkpoint_activations
from dlm.model.parent import load_parent
from dlm.runs.digest import weights_fingerprint
from dlm.runs.identity import run_id
from dlm.runs.run import Run
from dlm.train import train
from dlm.trainable.frozen_embeddings import FrozenEmbeddings
from dlm.trainable.full import Full
from dlm.trainable.gate import gate_of, restore_gated, save_model
from dlm.trainable.gated_lora import GatedLora
from dlm.trainable.lora import Lora
from dlm.trainer.fit import note_half_weights
from dlm.trainer.step import Step
from dlm.trainer.traced import traced
from dlm.types import Noised, generator

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

TINY = "pkg://dlm/assets/tiny"


def trained_names(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def disturb(model, of: str = "lora_B") -> None:
    """Adapters that do something."""
    noise = generator(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if of in name:
                p += 0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64).to(p.dtype)


def gated(architecture: str = "llama", dtype=torch.float64, **options):
    model = GatedLora(4, 8, **options).apply(tiny(architecture, dtype), MASK_ID)
    disturb(model)
    return model


def masked_half(scorer, rows: int = 2):
    """Inputs in which half of every block of 4 is hidden."""
    batch = random_batch(rows, 16)
    masked = batch.maskable & (batch.position % 4 >= 2)
    return scorer.inputs(batch, Noised(torch.where(masked, MASK_ID, batch.x0), masked, masked.double()))[0]


# --- identity


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "8d66ebc58be8"),
        (["trainable=lora"], "1bd2e947800b"),
        (["trainable=lora", "trainable.rank=64"], "30c06fae0ac5"),
    ],
)
def test_runs_from_before_trainable_sets_had_files_keep_their_id(overrides, expected):
    assert run_id(OmegaConf.to_container(as_before(config(*overrides)), resolve=True)) == expected


def test_other_targets_and_other_whole_parts_are_other_runs():
    found = [["trainable=lora", *o] for o in ([], ["trainable.targets=[q_proj]"], ["trainable.beside=[norm]"])]
    assert len({run_id(OmegaConf.to_container(config(*o), resolve=True)) for o in found}) == 3


def test_a_config_from_before_the_options_makes_the_same_lora():
    old = OmegaConf.create({"_target_": "dlm.trainable.Lora", "rank": 4, "alpha": 8, "dropout": 0.0})
    new = config("trainable=lora", "trainable.rank=4", "trainable.alpha=8").trainable
    models = [make(node).apply(tiny("qwen2"), MASK_ID) for node in (old, new)]
    assert trained_names(models[0]) == trained_names(models[1])


# --- what is trained


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_leaves_trainable_all_but_the_matrices_that_have_adapters(architecture):
    model = Lora(4, 8).apply(tiny(architecture), MASK_ID)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if ".base_layer." in n} != set()


def test_lora_on_two_matrices_beside_nothing_trains_those_adapters_alone():
    """BYOD."""
    model = Lora(4, 8, targets=["q_proj", "v_proj"], beside=[]).apply(tiny("llama"), MASK_ID)
    places = {(layer, at) for layer in "012" for at in ("q_proj", "v_proj")}
    assert {tuple(n.split(".")[i] for i in (2, 4)) for n in trained_names(model)} == places
    assert all("lora_" in n for n in trained_names(model)) and len(trained_names(model)) == 12


def test_lora_on_some_matrices_freezes_the_others_and_trains_what_is_named_beside():
    found = {part: trained_names(Lora(4, 8, targets=["q_proj"], beside=[part]).apply(tiny("llama"), MASK_ID))
             for part in ("embedding", "norm", "head")}  # fmt: skip
    whole = {part: {n for n in names if "lora_" not in n} for part, names in found.items()}
    assert whole["embedding"] == {"model.embed_tokens.weight"} and whole["head"] == {"lm_head.weight"}
    assert len(whole["norm"]) == 7 and all("norm" in n for n in whole["norm"])
    default = trained_names(Lora(4, 8, targets=["q_proj"]).apply(tiny("llama"), MASK_ID))
    assert {n for n in default if "lora_" not in n} == whole["embedding"] | whole["head"] | whole["norm"]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])  # of which the second ties its embeddings
@pytest.mark.parametrize("norms", [False, True])
def test_frozen_embeddings_freezes_embedding_and_head_tied_or_not(architecture, norms):
    model = FrozenEmbeddings(norms).apply(tiny(architecture), MASK_ID)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (architecture == "gemma3_text")
    expected = {"model.embed_tokens.weight"} | ({"lm_head.weight"} if architecture == "llama" else set())
    assert frozen == expected | {n for n, _ in model.named_parameters() if norms and "norm" in n}


@pytest.mark.parametrize("name", text_options("trainable"))
def test_training_moves_exactly_what_is_declared_trainable(name, runs_dir):
    cfg = small(runs_dir, f"trainable={name}", "optimizer.warmup=0")
    experiment = build(cfg)
    model = experiment.parent.model
    disturb(model)  # else A has no gradient in the first step
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = experiment.conversion.optimizer_builder.build(experiment.denoiser, 2)["optimizer"]
    batch = random_batch(2, 64)
    batch = replace(batch, x0=batch.x0 + 10)
    ready = prepare(experiment.denoiser, Uniform(), batch, generator(0))
    for _ in range(2):
        experiment.denoiser.loss(ready.inputs, ready.scored, Nelbo(), ready.num_tokens).loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained_names(model)


BAD = {
    "trainable=lora trainable.targets=[q_proj,w_proj]": "'w_proj' is no linear layer of the decoder: choose some of ",
    "trainable=lora trainable.targets=[lm_head]": "'lm_head' is no linear layer of the decoder",
    "trainable=lora trainable.targets=q_proj": "'q_proj' must be all-linear or a list of names",
    "trainable=lora trainable.targets=[]": "must be all-linear or a list of names",
    "trainable=lora trainable.beside=[heads]": "trainable.beside ['heads'] must be null or a list of embedding, norm",
    "trainable=lora trainable.alpha=0": "trainable.alpha 0 must be > 0",
    "trainable=gated_lora trainable.rank=0": "trainable.rank 0 must be at least 1",
    "trainable=gated_lora trainable.dropout=1": "trainable.dropout 1 must lie in [0, 1)",
    "trainable=gated_lora trainer.compile=true": "does not see which tokens gated adapters act at: set it to false",
    "trainable=frozen_embeddings trainable.norms=some": "trainable.norms 'some' must be true or false",
}


@pytest.mark.parametrize("overrides", BAD)
def test_bad_input_is_named_before_any_training(overrides, runs_dir, monkeypatch):
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    with pytest.raises(ValueError, match=re.escape(BAD[overrides])):
        train(small(runs_dir, *overrides.split()))


# --- the gate


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


def test_a_run_says_that_trained_weights_of_16_bits_lose_small_updates(capsys):
    """At the learning rates of large models most of them are small."""
    assert (torch.tensor([2 - 2 / 513, 2 - 2 / 511]).bfloat16() == 2.0).tolist() == [True, False]
    note_half_weights(denoiser(tiny("llama", torch.bfloat16), "block", 4, False))
    assert "the trained weights are bfloat16: an update of less than 1/512" in capsys.readouterr().err
    note_half_weights(denoiser(tiny("llama", torch.float32), "block", 4, False))
    frozen = denoiser(tiny("llama", torch.bfloat16).requires_grad_(False), "block", 4, False)
    note_half_weights(frozen)
    assert capsys.readouterr().err == ""


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


# --- a gated run from its training to its use


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


def test_full_trains_everything():
    assert all(p.requires_grad for p in Full().apply(tiny("llama").requires_grad_(False), MASK_ID).parameters())
