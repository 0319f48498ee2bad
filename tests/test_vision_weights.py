"""Which weights of a vision-language parent move, and how fast."""

from types import SimpleNamespace

import pytest
import torch
from common import config, options, tiny
from visions import CONFIGS, vision

from dlm.config.build import make
from dlm.config.values import train_settings
from dlm.trainable.base import vision_parts
from dlm.trainable.full import Full
from dlm.trainer.strategy import SOME_UNREAD, strategy_of


@pytest.mark.parametrize("family", CONFIGS)
def test_tower_and_connector_are_found_in_every_family_and_together_are_all_that_is_no_text(family):
    model = vision(family)
    parts = vision_parts(model)
    ids = {name: {id(p) for p in of} for name, of in parts.items()}
    assert ids["vision_tower"] and ids["connector"] and not ids["vision_tower"] & ids["connector"]
    text = {id(p) for module in (model.get_decoder(), model.get_output_embeddings()) for p in module.parameters()}
    assert ids["vision_tower"] | ids["connector"] | text == {id(p) for p in model.parameters()}
    assert len(ids["vision_tower"]) > len(ids["connector"])


def trained(trainable: str, *overrides: str):
    """The names of the trained weights of a LLaVA."""
    model = vision("llava")
    make(config(f"trainable={trainable}", *overrides).trainable).apply(model, 0)
    return {name for name, p in model.named_parameters() if p.requires_grad}, {n for n, _ in model.named_parameters()}


def test_frozen_parts_do_not_move_and_the_connector_alone_can():
    names, every = trained("full", "trainable.frozen=[vision_tower]")
    assert every - names == {name for name in every if "vision_tower" in name}
    names, every = trained("full", "trainable.frozen=[vision_tower,connector]")
    assert not any("vision_tower" in name or "projector" in name for name in names) and names
    names, every = trained("connector")
    assert names == {name for name in every if "multi_modal_projector" in name}


@pytest.mark.parametrize("name", options("optimizer"))
def test_the_tower_has_its_own_learning_rate_and_every_weight_one_group(name):
    model = vision("llava", dtype=torch.float32)
    node = config(f"optimizer={name}", "optimizer.vision_lr=0.25", "lr=0.5", "optimizer.warmup=0").optimizer
    groups = make(node).build(torch.nn.ModuleList([model]), 10)["optimizer"].param_groups
    rate_of = {p: group["lr"] for group in groups for p in group["params"]}
    tower = set(vision_parts(model)["vision_tower"])
    assert rate_of.keys() == set(model.parameters()) and sum(len(g["params"]) for g in groups) == len(rate_of)
    assert all(rate == (0.25 if p in tower else 0.5) for p, rate in rate_of.items())


@pytest.mark.parametrize("name", options("optimizer"))
def test_an_optimizer_takes_a_connector_alone(name):
    model = vision("llava", dtype=torch.float32)
    make(config("trainable=connector").trainable).apply(model, 0)
    optimizer = make(config(f"optimizer={name}").optimizer).build(torch.nn.ModuleList([model]), 10)["optimizer"]
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(vision_parts(model)["connector"])
    for parameter in held:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def test_what_only_a_vision_language_parent_has_is_refused_for_one_of_text():
    model = tiny("llama", torch.float32)
    with pytest.raises(ValueError, match="llama has no vision tower with a connector: it reads text only"):
        Full(["vision_tower"]).apply(model, 0)
    with pytest.raises(ValueError, match="llama has no vision tower"):
        make(config("optimizer.vision_lr=0.1").optimizer).build(torch.nn.ModuleList([model]), 10)
    with pytest.raises(ValueError, match=r"trainable.frozen \['eyes'\] are unknown: choose from"):
        Full(["eyes"])
    with pytest.raises(ValueError, match=r"optimizer.vision_lr 0.0 must be > 0"):
        make(config("optimizer.vision_lr=0.0").optimizer)


def test_several_processes_expect_that_some_weights_of_a_tower_are_not_read():
    for devices, model, expected in ((1, "llava", "auto"), (2, "llava", SOME_UNREAD), (2, "text", "auto")):
        parent = SimpleNamespace(model=tiny("llama") if model == "text" else vision(model))
        settings = train_settings(config(f"trainer.devices={devices}"))
        assert strategy_of(settings, SimpleNamespace(parent=parent)) == expected
