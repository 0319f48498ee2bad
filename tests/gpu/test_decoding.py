"""Decoding on a device: compiled and replayed as a CUDA graph, it gives the tokens of the plain loop on a CPU."""

from dataclasses import replace

import pytest
import torch
from conftest import EOS_ID, HEADS, denoiser, random_model

from dlm.attention.block import Block
from dlm.decoding.engine.graph import Replay
from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28]]
REQUEST = Request(PROMPTS, 40, EOS_ID, batch_size=2)


def scorer_of(heads):
    """Far from uniform predictions, so that several tokens are committed in a step and no tie decides."""
    architecture, shape = HEADS[heads]
    return denoiser(random_model(architecture, **shape, initializer_range=0.3), Block(32))


def decode(scorer, request=REQUEST, temperature=0.0):
    """Tokens and forwards of every prompt."""
    made = Threshold(0.3, temperature=temperature).generate(scorer, request)
    return [(g.tokens, g.nfe) for g in made]


@pytest.mark.parametrize("heads", HEADS)
def test_compiled_decoding_is_plain_decoding_on_the_device_and_on_the_cpu(device, heads, monkeypatch):
    """With more rows of queries than flex-decoding takes: [pending 32; current 32] for each of 12 or 32 heads."""
    recorded, record = [], Replay.record
    monkeypatch.setattr(Replay, "record", lambda replay, canvas: recorded.append(1) or record(replay, canvas))
    scorer = scorer_of(heads)
    on_cpu = decode(scorer)
    assert all(nfe > 3 for _, nfe in on_cpu) and any(nfe < len(tokens) for tokens, nfe in on_cpu)
    scorer.to(device)
    assert decode(scorer) == on_cpu
    torch.compiler.reset()
    assert decode(scorer, replace(REQUEST, compile=True)) == on_cpu
    assert bool(recorded) == (device == "cuda")


def test_a_sampled_decode_is_that_of_its_seed(device):
    scorer = scorer_of("qwen2-12:2").to(device)
    first, again, other = (
        decode(scorer, replace(REQUEST, generator=torch.Generator(device).manual_seed(seed)), temperature=1.0)
        for seed in (1, 1, 2)
    )
    assert first == again != other
