"""Programs of tests/test_on_a_gpu.py: `python tests/on_a_gpu.py NAME`. What the product does with a model on a
pretended GPU."""

import json
import sys

import torch
from common import EOS_ID, MASK_ID, config, options, pattern_of, random_batch, rows_of, tiny
from pretend_gpu import GPU, OnGpu, PretendGpu

from dlm.attention.masks import block_mask
from dlm.config.build import make
from dlm.conversion.prepare import prepare
from dlm.decoding.engine import session
from dlm.decoding.engine.request import Request
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.trainer.loss_profile import LossProfile
from dlm.types import generator

PROMPTS = [[5, 6, 7, 8, 9], [30, 31, 32, 33], [12, 13, 14, 12, 13, 14, 12]]
REQUEST = Request(PROMPTS, 7, (EOS_ID, 17), batch_size=2)
NUMBERS = {"threshold": 0.25, "bound": 1.5, "tokens_per_step": 2}


def scorer_of(model, name: str) -> Denoiser:
    pattern = pattern_of(name, 4)
    return Denoiser(model, pattern, MASK_ID, pattern.requires_token_shift, layer_types(model))


def decoder_of(name: str):
    settings = config(f"decoding={name}").decoding
    settings.update({key: value for key, value in NUMBERS.items() if key in settings})
    return make(settings)


def loops() -> dict:
    """An option of every loop."""
    return waits_of({type(decoder_of(name).loop): name for name in options("decoding")}.values())


def decoders() -> dict:
    """Every option."""
    return waits_of(options("decoding"))


def waits_of(names) -> dict:
    """The options of decoding under a pattern that each takes: the places where the host waits."""
    session.replays = lambda device: False  # a graph is CUDA's own
    waits = {}
    for name in names:
        decoder = decoder_of(name)
        pattern = next(p for p in options("attention") if decoder.takes(pattern_of(p, 4)) is None)
        expected = decoder.generate(scorer_of(tiny("llama"), pattern), REQUEST)
        with PretendGpu() as gpu:
            scorer = scorer_of(tiny("llama").to(GPU), pattern)
            assert decoder.generate(scorer, REQUEST) == expected, name
        waits[name] = sorted(set(gpu.waits))
    return waits


def training_step() -> dict:
    """A step of every pattern, its gradients those of a CPU: the places where the host waits."""
    waits = {}
    for name in options("attention"):
        cpu = scorer_of(tiny("llama"), name)
        prepared = prepare(cpu, Uniform(), random_batch(2, 16), generator(1))
        cpu.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).loss.backward()
        with PretendGpu() as gpu:
            scorer, moved = scorer_of(tiny("llama").to(GPU), name), prepared.to(GPU)
            scorer.loss(moved.inputs, moved.scored, Nelbo(), moved.num_tokens).loss.backward()
        waits[name] = sorted(set(gpu.waits))
        for (parameter, ours), theirs in zip(cpu.named_parameters(), scorer.parameters(), strict=True):
            assert isinstance(theirs.grad, OnGpu) or ours.grad is None, parameter
            assert ours.grad is None or torch.allclose(ours.grad, theirs.grad.inner), parameter
    return waits


def loss_profile() -> dict:
    """The profile of the loss of a step of every pattern, summed on the device: the places where the host waits."""
    waits = {}
    for name in options("attention"):
        scorer = scorer_of(tiny("llama"), name)
        prepared = prepare(scorer, Uniform(), random_batch(2, 16), generator(1))
        with PretendGpu() as gpu:
            profile = LossProfile(scorer.token_shift, GPU)
            profile.add([prepared.to(GPU)], torch.ones(len(prepared.scored.target)).to(GPU))
        waits[name] = sorted(set(gpu.waits))
    return waits


def masks() -> dict:
    """The mask of a layout, as FlexAttention takes it: the places where the host waits."""
    waits = {}
    for name in options("attention"):
        pattern = pattern_of(name, 4)
        rows = rows_of(pattern, random_batch(2, 160, [100, 60]))
        expected = block_mask(pattern, rows, rows)
        with PretendGpu() as gpu:
            on_gpu = rows.map(lambda t: t.to(GPU))
            mask = block_mask(pattern, on_gpu, on_gpu)
        waits[name] = sorted(set(gpu.waits))
        assert torch.equal(mask.kv_indices.inner, expected.kv_indices)
        assert torch.equal(mask.full_kv_num_blocks.inner, expected.full_kv_num_blocks)
    return waits


def ordinary() -> dict:
    """All of them, with an option of every loop: importing takes longer than one."""
    return {"loops": loops(), "training_step": training_step(), "masks": masks(), "loss_profile": loss_profile()}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
