"""A training with images of several processes (two, on the CPU, through gloo), and one of compiled layers."""

from dataclasses import replace

import pytest
import torch
from common import MASK_ID, config
from test_processes import FSDP2, OVERRIDES, member, metrics, runs, trained_by_two, weights
from visions import document, packed, vision

from dlm.attention.block import Block
from dlm.conversion.prepare import prepare
from dlm.data.packing import PackedRows
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.train import train
from dlm.types import generator

pytestmark = [pytest.mark.trains, pytest.mark.slow]

# One row to a micro-batch, so that two processes multiply the same matrices as one.
IMAGES = ("recipe=diffusionvl", "model=tiny_vlm", "data=scenes", "data.length=128", "data.batch_size=1", "tokens=512")
IMAGES += ("masking=uniform", "noise_level=full", "model.dtype=float64", "data.val_rows=2")
FROM = PackedRows.__getitem__


def sometimes_blind(rows, index):
    """A row, of which every other one has no images, so that in each step one process reads some and the other none."""
    row = FROM(rows, index)
    return replace(row, images=None) if index % 4 in (1, 2) else row


def blind_member(*arguments):
    PackedRows.__getitem__ = sometimes_blind  # in a process of its own
    member(*arguments)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process trains with twice the micro-batches."""
    folder = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedRows, "__getitem__", sometimes_blind)
        train(config(*OVERRIDES, *IMAGES, "trainer.accumulate=2", f"runs_dir={folder}"))
    (run,) = runs(folder)
    return run


@pytest.mark.parametrize("strategy", [(), FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_train_with_images_what_one_does(one, strategy, tmp_path):
    """Some weights of the tower are read by no loss, and none of it where a micro-batch has no images."""
    two = trained_by_two(tmp_path, *IMAGES, *strategy, member=blind_member)
    found, expected = weights(two), weights(one)
    assert found.keys() == expected.keys()
    assert max((found[name] - weight).abs().max() for name, weight in expected.items()) < 1e-9
    for name in ("val/nelbo", "train/grad_norm"):
        assert metrics(two)[name].dropna().to_list() == pytest.approx(metrics(one)[name].dropna().to_list())


def test_compiled_layers_give_the_loss_and_all_gradients_with_images():
    """Of another number of rows and images each time. Captured and differentiated as for any compiler; the code of the
    layers is then run as it is, which takes seconds instead of minutes."""
    model = vision.__wrapped__("llava").train()  # not the one that other tests read
    scorer = Denoiser(model, Block(8), MASK_ID, True, layer_types(model))

    def step(seed):
        batch = packed([[document("llava", seed, 3, 4, 17), document("llava", seed + 1, 5, 2, 9, count=seed)]])
        ready = prepare(scorer, Uniform(), batch, generator(seed))
        model.zero_grad()
        loss = scorer.loss(ready.inputs, ready.scored, Nelbo(), ready.num_tokens).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = [step(seed) for seed in (1, 2)]
    scorer.compile(few_shapes=False, backend="aot_eager")
    for (loss, gradients), seed in zip(plain, (1, 2), strict=True):
        compiled_loss, found = step(seed)
        assert torch.allclose(compiled_loss, loss, rtol=1e-12) and found.keys() == gradients.keys()
        assert all(torch.allclose(found[name], g, rtol=1e-9, atol=1e-12) for name, g in gradients.items())
