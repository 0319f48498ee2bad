"""A pattern is a value that never changes; what it promises is checked as it is built; and what is asked of the options
by glob is asked of a new one, too."""

import copy
import pickle

import pytest
import torch
from common import MASK_ID, PATTERNS, pattern_of, random_batch, rows_of, shared
from contracts import nothing_leaks, training_is_decoding, trimmed_is_whole
from faulty_patterns import (
    FAULTS,
    LooksInside,
    NoisyContext,
    SeesItself,
    SeesItselfFromBlock2,
    SinkAndWindow,
    SinkOfAnyBlock,
)

from dlm.attention.base import AttentionPattern, NoisePer
from dlm.attention.block import Block
from dlm.attention.check import WIDTH, grid
from dlm.conversion.prepare import prepare
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.types import Rows, generator

SIZES = (2, 4, 8, 16)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_never_changes_and_another_block_size_is_another_pattern(name):
    pattern = pattern_of(name, 4)
    for attribute in ("block_size", "noise_per", "a_new_one"):
        with pytest.raises(AttributeError, match="cannot be set: .* at\\(block_size\\) gives one"):
            setattr(pattern, attribute, 8)
    other = pattern.at(8)
    assert other.block_size == pattern_of(name, 8).block_size and type(other) is type(pattern)
    assert other == pattern_of(name, 8) and pattern.at(pattern.block_size) == pattern == pattern_of(name, 4)
    assert pickle.loads(pickle.dumps(pattern)) == copy.deepcopy(pattern) == pattern
    assert pattern.at(8) is pattern.at(8)


def test_another_block_size_keeps_the_options_of_a_pattern():
    other = SinkAndWindow(4, window=3, noise_per="sequence").at(8)
    assert (other.block_size, other.window, other.sink, other.noise_per) == (8, 3, 2, NoisePer.SEQUENCE)
    assert other != SinkAndWindow(8) and other == SinkAndWindow(8, 3, noise_per="sequence")
    assert PATTERNS["ar"](4).at(16).block_size == 1
    with pytest.raises(ValueError, match="block_size 0 must be at least 1"):
        other.at(0)


@pytest.mark.parametrize("size", [1, *SIZES, WIDTH + 1, 512])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_option_holds_what_its_class_promises(name, size):
    """Built without an error; and the envelope is one answer per block by another reckoning (I7)."""
    pattern = pattern_of(name, size)
    size, length = pattern.block_size, 3 * max(size, 8)
    position = torch.arange(length).repeat(2)
    rows = Rows(torch.arange(2 * length) >= length, torch.zeros_like(position), position)
    reaches = pattern.reaches(rows[:, None], rows[None])
    assert not (pattern.visible(rows[:, None], rows[None]) & ~reaches).any()  # nothing that is seen is left out
    side = size if pattern.blockwise else 1
    tiles = reaches.view(2 * length // side, side, 2 * length // side, side).transpose(1, 2).flatten(2)
    assert torch.equal(tiles.any(-1), tiles.all(-1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_pattern_that_breaks_a_promise_is_refused_as_it_is_built(fault, size):
    with pytest.raises(ValueError, match=f"attention pattern {fault.__name__} at block_size {size}: .*{FAULTS[fault]}"):
        fault(size)


@pytest.mark.parametrize("size", [1, *SIZES, 33, 4096])
def test_the_grid_has_every_stream_and_the_ends_and_the_middle_of_every_block(size):
    rows = grid(Block(size))
    position = rows.position[~rows.clean]
    assert torch.equal(position, rows.position[rows.clean]) and torch.equal(position, position.unique())
    assert {0, size // 2, size - 1} <= set((position % size).tolist())
    assert len(position) >= 64 and len((position // size).unique()) >= 8
    if size <= WIDTH:
        assert torch.equal(position, torch.arange(len(position)))  # all of them: the check is exhaustive


def test_the_check_of_a_pattern_is_made_once(monkeypatch):
    asked = []
    allowed = Block.allowed
    monkeypatch.setattr(Block, "allowed", lambda self, q, k: asked.append(1) or allowed(self, q, k))
    for _ in range(3):
        Block(37)
    assert len(asked) == 2  # for what is allowed and for the envelope


@pytest.mark.parametrize(
    ("architecture", "token_shift", "size"),
    [
        ("llama", False, 2),
        ("gemma3_text", True, 2),
        ("gemma3_text", False, 4),
        ("llama", True, 8),
        ("llama", False, 16),
    ],
)
def test_a_new_pattern_holds_the_contracts(architecture, token_shift, size):
    model = shared(architecture)
    scorer = Denoiser(model, SinkAndWindow(size), MASK_ID, token_shift, layer_types(model))
    nothing_leaks(scorer)
    training_is_decoding(scorer)
    trimmed_is_whole(scorer, [16, 9, 23])


@pytest.mark.parametrize(
    ("fault", "contract", "size"),
    [
        (SeesItself, nothing_leaks, 4),
        (SeesItselfFromBlock2, nothing_leaks, 4),
        (SinkOfAnyBlock, nothing_leaks, 4),
        (NoisyContext, training_is_decoding, 4),
        *((LooksInside, lambda scorer: trimmed_is_whole(scorer, [48]), size) for size in (8, 16)),
    ],
)
def test_the_contracts_catch_a_wrong_pattern(llama, fault, contract, size, unchecked):
    scorer = Denoiser(llama, fault(size), MASK_ID, False, layer_types(llama))
    with pytest.raises(AssertionError):
        contract(scorer)


def test_a_forward_is_made_under_the_pattern_that_its_inputs_were_laid_out_for(llama):
    scorer = Denoiser(llama, Block(8), MASK_ID, True, layer_types(llama))
    batch = random_batch(2, 16)
    for size in (2, 4, 8, 4):
        made = prepare(scorer.at(size), Uniform(), batch, generator(0))
        own = Denoiser(llama, Block(size), MASK_ID, True, layer_types(llama))
        assert made.inputs.pattern.block_size == size and scorer.pattern.block_size == 8
        assert torch.equal(scorer(made.inputs), own(prepare(own, Uniform(), batch, generator(0)).inputs))


def test_equal_patterns_are_one_to_a_compiler():
    """A mask is compiled once for each block size, not once for each pattern object."""
    compiled = []

    def backend(module, example):
        compiled.append(module)
        return module

    torch._dynamo.reset()
    rows = rows_of(Block(4), random_batch(1, 16))
    seen = torch.compile(lambda pattern, q, k: pattern.allowed(q, k), backend=backend, fullgraph=True)
    for _ in range(3):
        for size in (4, 8):
            pattern = Block(size)
            assert torch.equal(
                seen(pattern, rows[:, :, None], rows[:, None]), pattern.allowed(rows[:, :, None], rows[:, None])
            )
    assert len(compiled) <= 3  # of one size, of another, and of any
    torch._dynamo.reset()


class ForgetsItsStream(AttentionPattern):
    """Written for [noisy ; clean], without `clean_stream = True`."""

    def allowed(self, q, k):
        own = ~k.clean & (self.block(q) == self.block(k))
        return own | (k.clean & (self.block(k) < self.block(q)))


def test_a_pattern_whose_rows_have_no_context_is_refused_with_what_was_forgotten():
    with pytest.raises(ValueError, match="nothing of an earlier block.*set clean_stream = True"):
        ForgetsItsStream(4)
