"""Decoding as on a GPU: fixed shapes, state that stays where it is, a step that is replayed."""

from dataclasses import replace

import pytest
import torch
from common import EOS_ID, PATTERNS, Rows, denoiser, everyday, pattern_of
from visions import IMAGE, prompts, seeing

from dlm.attention.block import Block
from dlm.attention.masks import block_mask, dense_mask
from dlm.decoding.engine import session
from dlm.decoding.engine.cache import SlotCache
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.graph import WARM_UP, Replay, call_layer
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import step
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold

PROMPTS = [[5, 6, 7, 8, 9], [11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [30, 31, 32, 33], [40, 41]]
NEW = 14


class Recording:
    """A CUDA graph: the step as it was recorded, with the host's numbers of then, which leaves those of now alone."""

    def __init__(self, step, canvas):
        self.step, self.canvas, self.pending = step, canvas, canvas.max_pending

    def replay(self):
        pictures, now = self.canvas.pictures, self.canvas.max_pending
        self.canvas.max_pending = self.pending
        if pictures is not None:
            rereads, pictures.rereads = pictures.rereads, False  # what reads tokens of images waits for the device
        self.step(self.canvas)
        self.canvas.max_pending = now
        if pictures is not None:
            pictures.rereads = rereads


@pytest.fixture
def like_a_gpu(monkeypatch, uncompiled):
    """Fixed shapes and replays, without a compiler and without CUDA. Returns how many graphs were recorded."""
    recorded = []

    def record(self, canvas):
        recorded.append((len(canvas), canvas.max_pending))
        return Recording(self.step, canvas)

    monkeypatch.setattr(session, "replays", lambda *args: True)
    monkeypatch.setattr(Replay, "warm_up", lambda self, canvas: self.step(canvas))
    monkeypatch.setattr(Replay, "record", record)
    return recorded


@pytest.mark.trains
@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_fixed_shapes_and_replays_give_the_same_tokens_and_the_same_nfe(
    llama, like_a_gpu, pattern, token_shift, batch_size
):
    scorer = denoiser(llama, pattern, 4, token_shift or pattern == "ar")
    request = Request(PROMPTS, NEW, EOS_ID, batch_size)
    made = Threshold(0.3).generate(scorer, replace(request, compile=True))
    recorded = list(like_a_gpu)
    assert made == Threshold(0.3).generate(scorer, request)
    assert len(recorded) == len(set(recorded)) > 0  # none twice for a batch size, with or without pending rows


@pytest.mark.parametrize("family", ["qwen3_vl", pytest.param("llava", marks=pytest.mark.slow)])
def test_a_step_that_reads_tokens_of_an_image_is_not_replayed_and_those_behind_it_are(family, like_a_gpu):
    """An image that reaches into the block of its answer comes to a place whose steps were recorded."""
    scorer = seeing(family, Block(4), True)
    texts, images = prompts(family, [(5, 2, 0), (1, 1, 1), (4 if family == "llava" else 6, 1, 1)])
    assert IMAGE in texts[-1][len(texts[-1]) // 4 * 4 :]
    rereads = []
    request = Request(texts, 16, 2, batch_size=2, images=images)
    watched = replace(request, compile=True, on_step=lambda canvas: rereads.append(canvas.pictures.rereads))
    made = Fixed(2).generate(scorer, watched)
    assert [(g.tokens, g.nfe) for g in made] == [(g.tokens, g.nfe) for g in Fixed(2).generate(scorer, request)]
    assert like_a_gpu and True in rereads and not rereads[0] and not rereads[-1]


@pytest.mark.trains
@pytest.mark.parametrize("tokens_per_step", [1, 3])
@pytest.mark.parametrize("free_rows", everyday([32, 0, 64]))
def test_a_batch_that_shrinks_misses_no_pending_tokens(llama, like_a_gpu, monkeypatch, free_rows, tokens_per_step):
    """Also where so few are left that the host stops asking for them."""
    monkeypatch.setattr(session, "FREE_ROWS", free_rows)
    scorer = denoiser(llama, "block", 8, False)
    prompts = [[5 + n] * (3 + 2 * n) for n in range(10)]
    request = Request(prompts, 30, (EOS_ID, 17, 24, 38), batch_size=8)
    made = Fixed(tokens_per_step).generate(scorer, replace(request, compile=True))
    assert made == Fixed(tokens_per_step).generate(scorer, request)


def test_the_places_of_a_batch_shrink_to_powers_of_two(llama, like_a_gpu):
    """Few sizes are compiled, whatever the order in which sequences finish."""
    scorer, sizes = denoiser(llama, "block", 4, False), set()
    request = Request([[5 + n] * 3 for n in range(11)], 40, tuple(range(2, 30, 5)), batch_size=11, compile=True)
    Threshold(0.3).generate(scorer, replace(request, on_step=lambda canvas: sizes.add(len(canvas))))
    assert len(sizes) > 2 and sizes <= {11, 8, 4, 2, 1}


def test_a_layer_is_given_its_own_part_of_the_cache_however_the_cache_is_passed(uncompiled):
    cache, seen = SlotCache(3, 4), []
    layer = torch.nn.Identity()
    layer._call_impl = lambda *args, **kwargs: seen.append((args, kwargs))
    call_layer(layer, 1, "x", cache, past_key_values=cache)
    assert seen == [(("x", cache.layers[1]), {"past_key_values": cache.layers[1]})]


@pytest.mark.parametrize("stop", [None, lambda tokens: 7 in tokens])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_a_step_that_asks_nothing_of_the_host_is_compiled(llama, uncompiled, temperature, stop):
    scorer, rule = denoiser(llama, "block", 4, True), Threshold(0.3, temperature=temperature)
    made = rule.generate(scorer, Request(PROMPTS[:2], NEW, EOS_ID, stop=stop, compile=True))
    assert len(made) == 2 and bool(uncompiled) == (temperature == 0 and stop is None)


def test_a_new_prompt_takes_the_place_of_a_finished_one_and_nothing_moves(llama):
    scorer = denoiser(llama, "block", 4, True)
    request = Request(PROMPTS, NEW, EOS_ID)
    canvas, new = (Canvas(scorer, request, index, 24, fixed_shapes=True) for index in ([0, 1], [2]))
    with torch.no_grad():
        for c in (canvas, new):
            step(scorer, c, Threshold(0.3).rule)
        canvas.finished[0], canvas.live, placement = True, [1], canvas.placement
        canvas.join(new)
    assert canvas.live == [1, 0] and canvas.index.tolist() == [2, 1] and canvas.placement is placement
    assert torch.equal(canvas.cache.layers[2].keys[0], new.cache.layers[2].keys[0])


def test_a_step_changes_the_state_in_place(llama):
    """What a CUDA graph asks for: it is recorded with addresses."""
    scorer = denoiser(llama, "block", 4, True)
    canvas = Canvas(scorer, Request(PROMPTS, NEW, EOS_ID), list(range(5)), 24, fixed_shapes=True)

    def addresses():
        cached = [t for layer in canvas.cache.layers for t in (layer.keys, layer.values)]
        return [t.data_ptr() for t in (*(getattr(canvas, name) for name in Canvas.STATE), *cached)]

    with torch.no_grad():
        step(scorer, canvas, Threshold(0.3).rule)
        before, tokens = addresses(), canvas.x.clone()
        for _ in range(6):
            step(scorer, canvas, Threshold(0.3).rule)
    assert addresses() == before and not torch.equal(canvas.x, tokens)


def test_a_replay_is_recorded_after_its_warm_up_and_again_when_tensors_move(llama, monkeypatch):
    scorer, calls = denoiser(llama, "block", 4, True), []
    room = Canvas(scorer, Request(PROMPTS, NEW), list(range(5)), 24, fixed_shapes=True)
    monkeypatch.setattr(Replay, "warm_up", lambda self, canvas: calls.append("warm_up"))
    monkeypatch.setattr(Replay, "record", lambda self, canvas: calls.append("record") or Recording(self.step, canvas))
    replay = Replay(lambda canvas: calls.append("replay"), can_record=True)
    for _ in range(WARM_UP + 2):
        replay(room)
    assert calls == ["warm_up"] * WARM_UP + ["record", "replay", "replay"]
    room.placement = object()
    replay(room)
    assert calls[-1] == "warm_up"


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_a_block_mask_of_few_rows_over_a_cache_is_the_dense_mask(pattern):
    size, slots = 8, torch.arange(300)[None]
    k = Rows(slots < 200, torch.where(slots < 208, 0, -1), slots)
    q = k[:, 200 : 200 + size]
    mask, dense = block_mask(pattern_of(pattern, 4), q, k), dense_mask(pattern_of(pattern, 4), q, k)
    row, column = (t.flatten() for t in torch.meshgrid(torch.arange(size), slots[0], indexing="ij"))
    assert torch.equal(mask.mask_mod(torch.zeros_like(row), row, row, column), dense[0, 0].flatten())
    assert mask.shape == (1, 1, size, 300)
    tiles = mask.to_dense()[0, 0, 0]
    expected = torch.nn.functional.pad(dense[0, 0].any(0), (0, -300 % 128)).view(-1, 128).any(-1)
    assert torch.equal(tiles.bool(), expected)
