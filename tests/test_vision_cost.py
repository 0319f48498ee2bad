"""What images cost beside the decoder that reads them: the FLOP of a step, and what autograd keeps of them."""

from dataclasses import replace

import pytest
import torch
import transformers
from common import MASK_ID, config, everyday
from packaging.version import Version
from visions import FAMILIES, IMAGE, document, packed, seeing, vision

from dlm import doctor
from dlm.attention.block import Block
from dlm.config.budget import Budget, flops_of_step
from dlm.config.build import build, make
from dlm.config.values import train_settings
from dlm.conversion import flops
from dlm.conversion.flops import batch_flops, count_pairs
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import corrupt, lay_out
from dlm.data.packing import collate
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.flops import Forwards, Shape, executed, plain_step
from dlm.model.layout import Layout
from dlm.model.pictured import pictured
from dlm.model.tower import heard_of, image_bytes, image_flops
from dlm.trainable.full import Full
from dlm.trainer.memory import estimate
from dlm.trainer.picture_memory import bytes_of_images, size_of_images
from dlm.trainer.resources import fit_into_memory
from dlm.trainer.step import Step
from dlm.trainer.traced import traced
from dlm.types import Noised, generator

SCENES = ("recipe=diffusionvl", "model=tiny_vlm", "data=scenes", "data.length=128", "data.batch_size=2", "tokens=1024")
FROZEN = [(), ("vision_tower",), ("vision_tower", "connector")]


@pytest.fixture
def model(request):
    """A model of the family that a test is for; all of its weights are trained again afterwards."""
    chosen = vision(request.param)
    yield chosen
    chosen.requires_grad_(True)


def step_of(family):
    """A denoiser of a family, and a step on documents with one image, with two and with none."""
    scorer = seeing(family, Block(8), True)
    documents = [document(family, 1, 3, 4, 17), document(family, 2, 5, 2, 9, count=2), document(family, 3, 6, 9, 12, 0)]
    batch = scorer.scorable(packed([documents]))
    return scorer, lay_out(scorer, batch, corrupt(scorer, Uniform(), batch, generator(1)), Objective(Nelbo()))


def flop_of(scorer, ready, inputs):
    """The FLOP that a step executes."""
    counts = executed(lambda: scorer.loss(inputs, ready.scored, Nelbo(), ready.num_tokens).loss.backward())
    scorer.zero_grad()
    return sum(counts.values())


@pytest.mark.parametrize("frozen", FROZEN, ids=str)
@pytest.mark.parametrize("model", everyday(["qwen2_5_vl", *sorted(set(FAMILIES) - {"qwen2_5_vl"})]), indirect=True)
def test_the_flop_of_images_are_those_by_which_a_step_exceeds_the_same_one_without_them(model, frozen):
    Full(list(frozen)).apply(model, 0)
    scorer, ready = step_of(model.config.model_type)
    blind = replace(ready.inputs, pictured=None, source=None)
    counted = {way: image_flops(model, ready.inputs.pictured, trained=way) for way in (True, False)}
    assert counted[True] == flop_of(scorer, ready, ready.inputs) - flop_of(scorer, ready, blind) > 0
    assert (counted[False] == counted[True]) == (len(frozen) == 2)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("model", ["llava"], indirect=True)
@pytest.mark.parametrize("name", ["full", "connector"])
def test_the_closed_form_of_a_step_with_images_is_what_the_counter_counts(model, name):
    """Of dense masks, and with the whole last layer. Gradients pass through a frozen decoder to the connector."""
    make(config(f"trainable={name}").trainable).apply(model, 0)
    scorer, ready = step_of("llava")
    scorer.last_layer.mlp = None
    size, rows = ready.inputs.input_ids.shape[1], ready.inputs.input_ids.numel()
    rotary = model.get_decoder().rotary_emb  # which older versions of transformers make by a product of matrices
    positions = torch.arange(size).expand(len(ready.inputs.input_ids), size)
    angles = executed(lambda: rotary(torch.zeros(1), positions))["linear"]
    expected = plain_step(Shape.of(model), rows, rows * size, len(ready.inputs.scored), frozen=name == "connector")
    expected += image_flops(model, ready.inputs.pictured, trained=True)
    assert flop_of(scorer, ready, ready.inputs) - angles == expected


@pytest.fixture(scope="module")
def made():
    return build(config(*SCENES))


@pytest.mark.trains
def test_a_budget_of_flops_counts_images_and_a_frozen_tower_costs_less(made, monkeypatch):
    monkeypatch.setattr(flops, "BATCHES", 2)

    def of_step():
        return flops_of_step(made.data, made.conversion, 2)

    trained, batch = of_step(), collate([made.data.train_rows[n] for n in range(2)])
    counts = {
        has_images: batch_flops(made.conversion, made.denoiser, shown, generator(0))
        for has_images, shown in ((True, batch), (False, replace(batch, images=None)))
    }
    inputs, _ = pictured(batch)
    assert counts[True] - counts[False] == image_flops(made.denoiser.model, inputs, trained=True) > 0
    assert Budget("flops", 5 * trained, 2).num_steps(made.data, made.conversion) == 5
    Full(["vision_tower"]).apply(made.denoiser.model, 0)
    assert of_step() < trained
    Full([]).apply(made.denoiser.model, 0)


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ["prediction", "trajectory"])
def test_the_tower_runs_once_more_for_a_rollout(rollout):
    made = build(config(*SCENES, "recipe=none", f"rollout={rollout}"))
    made.conversion.rollout.probability = 1.0
    batch = collate([made.data.train_rows[n] for n in range(2)])
    with Forwards(made.denoiser.model) as forwards:
        noised = corrupt(made.denoiser, made.conversion.masking, batch, generator(0))
        made.conversion.rollout(made.denoiser, made.denoiser.scorable(batch), noised, generator(0))
    images = sum(len(shown["pixel_values"]) for shown in forwards.pictured)
    assert images == len(pictured(batch)[0]["pixel_values"]) and forwards.rows
    once = image_flops(made.denoiser.model, pictured(batch)[0], trained=False)
    assert sum(image_flops(made.denoiser.model, shown, trained=False) for shown in forwards.pictured) == once


def kept(scorer, run):
    """The bytes that autograd keeps of a call, without the weights."""
    found, own = {}, {p.untyped_storage().data_ptr() for p in [*scorer.parameters(), *scorer.buffers()]}

    def keep(tensor):
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(size for address, (size, _) in found.items() if address not in own)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="its layers keep other tensors")
@pytest.mark.parametrize("model", everyday(["llava", "qwen2_5_vl", "gemma3", "idefics3"]), indirect=True)
def test_the_bytes_of_images_are_those_that_autograd_keeps(model):
    scorer, ready = step_of(model.config.model_type)
    shown = ready.inputs.pictured
    without, again = image_bytes(model, shown)
    assert without == kept(scorer, lambda: heard_of(model, shown)) and 0 < again < without
    blind = replace(ready.inputs, pictured=None, source=None)
    both, decoder = (kept(scorer, lambda i=inputs: scorer.read(i)) for inputs in (ready.inputs, blind))
    assert both - decoder == pytest.approx(without, rel=0.1)
    Full(["vision_tower", "connector"]).apply(model, 0)
    assert image_bytes(model, shown) == (0, 0)


@pytest.mark.parametrize("model", ["llava"], indirect=True)
def test_a_frozen_decoder_keeps_what_gradients_pass_through_on_their_way_to_the_connector(model):
    step, found = Step(32, 1, "64-true", torch.device("cpu")), {}
    for name in ("full", "connector"):
        make(config(f"trainable={name}").trainable).apply(model, 0)
        found[name], _ = traced(seeing("llava", Block(8), True), step, 2)
    assert 0.5 * found["full"] < found["connector"] <= found["full"]


@pytest.mark.trains
def test_the_memory_of_a_step_has_the_row_with_the_most_images_of_the_data(made, capsys):
    cfg = config(*SCENES)
    model, most = made.denoiser.model, max(size_of_images(collate([row])) for row in made.data.train_rows)
    largest = next(row for row in made.data.train_rows if size_of_images(collate([row])) == most)
    of_row = bytes_of_images(model, made.data, torch.float32)
    assert of_row == image_bytes(model, pictured(collate([largest]))[0])
    assert bytes_of_images(model, made.data, torch.bfloat16) == tuple(n // 2 for n in of_row)
    step = Step(128, 1, "32-true", torch.device("cpu"))
    without, seeing_images = (estimate(made.denoiser, s, 2, False) for s in (step, replace(step, images=of_row)))
    assert seeing_images.activations == without.activations + 2 * of_row[False]
    fit_into_memory(train_settings(cfg), made, 1)
    assert str(seeing_images) in capsys.readouterr().out
    _, planned = doctor.planned(cfg)
    assert str(estimate(made.denoiser, replace(step, images=of_row), 2, False)) in planned.text


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
@pytest.mark.parametrize("block_size", [8, 32])
def test_a_long_prompt_with_an_image_is_read_once_where_the_plain_layout_reads_it_twice(family, block_size):
    """A prompt of 1,500 tokens and an answer of 100, all of it hidden, which is the most that a step reads."""
    made = document(family, 1, 700, 792, 100)
    batch = packed([[made]])
    assert made[1] == 1500 and len(made[0]) == 1600
    layout = Layout(Block(block_size), MASK_ID, False, None, False)
    noised = Noised(torch.where(batch.maskable, MASK_ID, batch.x0), batch.maskable, batch.maskable.float())
    plain, ready = layout.inputs(batch, noised)[0], lay_out(layout, batch, noised, Objective(Nelbo()))
    assert plain.input_ids.shape == (1, 2 * 1600)
    first = 1500 // block_size * block_size  # of the blocks of the answer, which the prompt may end in
    noisy, clean = 1600 - first, 1600 - block_size
    assert ready.inputs.input_ids.shape == (1, noisy + clean) and noisy + clean < 0.6 * 2 * 1600
    assert int((ready.inputs.input_ids == IMAGE).sum()) == int((batch.x0 == IMAGE).sum()) == 6
    pairs = count_pairs(ready.inputs)[1]
    assert pairs < 0.6 * count_pairs(plain)[1] and pairs < 0.25 * (2 * 1600) ** 2
