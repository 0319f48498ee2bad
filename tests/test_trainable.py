"""Which weights move: exactly those that are declared."""

import re
from dataclasses import replace

import pytest
import torch
from adapters import disturb
from common import ARCHITECTURES, MASK_ID, as_before, config, denoiser, random_batch, text_options, tiny
from omegaconf import OmegaConf
from small_runs import small

from dlm.config.build import build, make
from dlm.conversion.module import Conversion
from dlm.conversion.prepare import prepare
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.runs.identity import run_id
from dlm.train import train
from dlm.trainable.frozen_embeddings import FrozenEmbeddings
from dlm.trainable.full import Full
from dlm.trainable.lora import Lora
from dlm.trainer.fit import note_half_weights
from dlm.types import generator

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]


def trained_names(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


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


def test_a_run_says_that_trained_weights_of_16_bits_lose_small_updates(capsys):
    """At the learning rates of large models most of them are small."""
    assert (torch.tensor([2 - 2 / 513, 2 - 2 / 511]).bfloat16() == 2.0).tolist() == [True, False]
    note_half_weights(denoiser(tiny("llama", torch.bfloat16), "block", 4, False))
    assert "the trained weights are bfloat16: an update of less than 1/512" in capsys.readouterr().err
    note_half_weights(denoiser(tiny("llama", torch.float32), "block", 4, False))
    frozen = denoiser(tiny("llama", torch.bfloat16).requires_grad_(False), "block", 4, False)
    note_half_weights(frozen)
    assert capsys.readouterr().err == ""


def test_full_trains_everything():
    assert all(p.requires_grad for p in Full().apply(tiny("llama").requires_grad_(False), MASK_ID).parameters())
