"""Blocks that begin where the prompt ends (`block_anchor=prompt`): no block mixes a prompt with its answer, in training
and in decoding, of text and of images."""

import random
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
import torch
from common import MASK_ID, PATTERNS, attention_yaml, config, everyday, options, random_batch, shared
from contracts import trimmed_is_whole
from omegaconf import OmegaConf
from test_decoding_contract import PROMPTS, REQUEST, decoder
from test_vision import prepared
from test_watch import Numbers
from visions import document, packed, prompts, seeing

from dlm.attention.base import BlockAnchor
from dlm.attention.block import Block
from dlm.attention.block_noisy import BlockNoisy
from dlm.attention.block_token_causal import BlockTokenCausal
from dlm.config.build import make
from dlm.conversion.selfcheck import check
from dlm.data.packing import Document, collate, pack
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import forward
from dlm.decoding.fixed import Fixed
from dlm.decoding.prefix import Prefix
from dlm.evaluation.generation import on_grid
from dlm.evaluation.scores import scores
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.model.layout import Layout
from dlm.model.trim import trim
from dlm.runs.identity import run_id
from dlm.types import Noised, generator
from dlm.watch.trace import Recorder

ANCHORED = [name for name in PATTERNS if "block_anchor" in attention_yaml(name)]


@cache
def scorer(pattern: str, size: int, token_shift: bool, architecture: str = "llama") -> Denoiser:
    model = shared(architecture)
    anchored = PATTERNS[pattern](size, block_anchor="prompt")
    return Denoiser(model, anchored, MASK_ID, token_shift, layer_types(model))


def row(*documents: tuple[int, int]):
    """A batch of one row of documents, each with a prompt and an answer of so many tokens."""
    made = [
        Document(
            torch.randint(2, 50, (given + answer,), generator=generator(n)).tolist(), [False] * given + [True] * answer
        )
        for n, (given, answer) in enumerate(documents)
    ]
    return collate([pack(made, sum(map(sum, documents)), 0)])


@pytest.mark.parametrize("name", ANCHORED)
def test_who_sees_whom_is_what_blocks_counted_from_the_answer_say_for_every_prompt_and_block(name):
    """Exhaustively, written out anew: every pair of rows of two documents, for prompts of 0 to 9 tokens and blocks of 1
    to 5. No noisy row sees the clean stream of its own or of a later block (I4), and documents are apart (I6)."""
    for size in range(1, 6):
        pattern = PATTERNS[name](size, block_anchor="prompt")
        layout = Layout(pattern, MASK_ID, False, None, False)
        for given in range(10):
            batch = row((given, 7), ((given * 3 + 4) % 10, 5))
            everything = torch.ones_like(batch.maskable)
            rows = layout.inputs(batch, Noised(batch.x0, everything, everything.float()))[0].rows[0]
            prompt = torch.where(batch.document[0] == 0, given, (given * 3 + 4) % 10)
            prompt = torch.where(prompt > 1, prompt, 0)  # a first token alone is none
            block = (batch.position[0] - prompt).div(size, rounding_mode="floor").repeat(1 + pattern.clean_stream)
            position, number = (t[0].repeat(1 + pattern.clean_stream) for t in (batch.position, batch.document))
            q, k = rows[:, None], rows[None]
            own, earlier = block[:, None] == block, block[:, None] > block
            sees = own | earlier
            if pattern.clean_stream:
                sees = (~q.clean & ~k.clean & own) | (~q.clean & k.clean & earlier) | (q.clean & k.clean & sees)
            ahead = position > position[:, None]
            sees &= ~(ahead & q.clean & k.clean) if pattern.clean_causal else torch.tensor(True)
            sees &= ~(ahead & ~q.clean & ~k.clean) if name == "block_causal" else torch.tensor(True)
            assert torch.equal(pattern.visible(q, k), sees & (number[:, None] == number)), (size, given)


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("name", ANCHORED)
@torch.no_grad()
def test_training_scores_every_block_of_an_answer_as_decoding_does(name, token_shift, full_or_sliding):
    """Prompts whose length is no multiple of the block (I3)."""
    made = Denoiser(
        full_or_sliding, PATTERNS[name](4, block_anchor="prompt"), MASK_ID, token_shift, layer_types(full_or_sliding)
    )
    for given in (1, 2, 5, 7, 8):
        batch = row((given, 12))
        for begin in range(given, given + 12 - 3 - (given == 1), 4):
            end = made.pattern.block_end(begin, given)
            inside = (batch.position >= begin) & (batch.position < end)
            masked = inside & ((batch.position == begin) | (batch.x0 % 2 == 0))
            xt = torch.where(masked, MASK_ID, batch.x0)
            inputs, _ = made.inputs(batch, Noised(xt, masked, masked.float()))
            canvas = Canvas(made, Request([batch.x0[0, :given].tolist()], 16), [0], given + 20)
            canvas.start[:] = end - 4
            canvas.x[0, :end], canvas.masked[0, :end] = xt[0, :end], masked[0, :end]
            torch.testing.assert_close(forward(made, canvas), made(inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("family", "token_shift"), [("qwen3_vl", False), ("gemma3", True)])
@torch.no_grad()
def test_training_scores_an_answer_to_images_as_decoding_does_and_batches_do(family, token_shift):
    """Images on three axes of positions, and images that see each other both ways (I3, I5)."""
    size = 4
    made = seeing(family, Block(size, block_anchor="prompt"), token_shift)
    first, second = document(family, 1, 3, 4, 12), document(family, 2, 6, 1, 8, count=2)
    assert first[1] % size and second[1] % size
    batch = made.scorable(packed([[first, second]]))
    noised = Uniform(count="bernoulli", t_min=0.4)(batch, made.pattern.units(batch), MASK_ID, generator(3))
    ready = prepared(made, batch, noised=noised)
    trained, at = made(ready.inputs), {int(t): n for n, t in enumerate(ready.scored.index)}
    for start, (ids, prompt, pictures) in ((0, first), (len(first[0]), second)):
        for begin in range(prompt, len(ids), size):
            here = slice(start + begin, start + begin + size)
            masked = noised.masked[0, here]
            request = Request([ids[:begin].tolist()], size, images=[pictures])
            canvas = Canvas(made, request, [0], begin + size)
            canvas.x[0, begin:-1], canvas.masked[0, begin:-1] = noised.xt[0, here], masked
            expected = trained[[at[here.start + int(j)] for j in masked.nonzero()]]
            torch.testing.assert_close(forward(made, canvas).double(), expected.double(), rtol=1e-6, atol=1e-6)
    texts, images = prompts(family, [(3, 5, 1), (1, 2, 2), (4, 3, 0)])
    together = Fixed(2).generate(made, Request(texts, 8, 2, batch_size=2, images=images))
    for text, image, found in zip(texts, images, together, strict=True):
        alone = Fixed(2).generate(made, Request([text], 8, 2, images=[image]))[0]
        assert (found.tokens, found.nfe) == (alone.tokens, alone.nfe)


def test_a_prompt_is_laid_out_once_and_no_noisy_block_has_a_token_of_it():
    """The columns that the network reads: the prompt, and of the answer the noisy blocks and all clean ones but the
    last. On a grid that begins with the document, the end of the prompt is read twice."""
    batch, size = row((37, 24)), 8
    for anchor, columns in (("prompt", 37 + 24 + 16), ("absolute", 56 + 5 + 24)):
        layout = Layout(Block(size, block_anchor=anchor), MASK_ID, False, None, False)
        xt = torch.where(batch.maskable, MASK_ID, batch.x0)
        inputs = trim(layout.inputs(batch, Noised(xt, batch.maskable, batch.maskable.float()))[0])
        assert int((inputs.rows.document >= 0).sum()) == columns
        noisy_prompt = ~inputs.rows.clean & (inputs.position_ids < 37) & (inputs.rows.document >= 0)
        assert int(noisy_prompt.sum()) == (0 if anchor == "prompt" else 5)


@pytest.mark.parametrize(
    ("name", "token_shift"), [("block", False), ("block_token_causal", True), ("block_noisy", True)]
)
def test_a_trimmed_forward_has_the_loss_and_all_gradients_of_the_whole(name, token_shift):
    """Documents whose prompts end inside a block of the other grid (I7)."""
    trimmed, whole = trimmed_is_whole(scorer(name, 4, token_shift), [13, 21, 14])
    assert trimmed.input_ids.numel() < whole.input_ids.numel()


@pytest.mark.parametrize("name", everyday(sorted(options("decoding"), key=lambda name: name != "pipelined")))
def test_every_option_decodes_a_ragged_batch_as_single_prompts(name):
    """And ends in whole blocks behind each prompt (I5)."""
    decode = decoder(name)
    for pattern in (
        p for p in ("block", "block_noisy", "block_token_causal") if decode.takes(scorer(p, 4, False).pattern) is None
    ):
        made = scorer(pattern, 4, pattern == "block_token_causal")
        together = decode.generate(made, REQUEST)
        for prompt, found in zip(PROMPTS, together, strict=True):
            (alone,) = decode.generate(made, replace(REQUEST, prompts=[prompt]))
            assert (found.tokens, found.nfe) == (alone.tokens, alone.nfe)


def test_a_block_of_decoding_begins_with_the_answer_and_holds_none_of_the_prompt():
    seen = []
    Fixed(2).generate(
        scorer("block", 4, False), Request([[5] * 7, [6] * 10], 8, on_step=lambda c: seen.append(c.start.tolist()))
    )
    assert seen[0] == [7, 10] and [8, 11] not in seen and [11, 14] in seen


@pytest.mark.parametrize("token_shift", [False, True])
@torch.no_grad()
def test_blocks_of_one_token_are_ar_on_either_grid(token_shift, full_or_sliding):
    one = [
        Denoiser(full_or_sliding, Block(1, block_anchor=a), MASK_ID, token_shift, layer_types(full_or_sliding))
        for a in ("absolute", "prompt")
    ]
    own, other = (Fixed(1).generate(made, replace(REQUEST, eos_ids=None)) for made in one)
    assert [g.tokens for g in own] == [g.tokens for g in other]


@pytest.mark.parametrize(
    ("size", "token_shift"), everyday([(4, True), (4, False), (1, True), (16, False), (16, True)], 2)
)
@torch.no_grad()
def test_a_run_checks_itself_on_its_own_grid(size, token_shift):
    for name in ANCHORED:
        assert len(check(scorer(name, size, token_shift), random_batch(1, 16).x0[0], half=False, untrained=True)) >= 2


@torch.no_grad()
def test_a_continuation_is_scored_as_it_is_decoded_from_left_to_right():
    for name, shift in (("block", False), ("block_token_causal", True), ("block_noisy", False)):
        made, prompt = scorer(name, 4, shift), [5, 6, 7, 8, 9, 10]
        (written,) = Prefix(None, sliding=False).generate(made, Request([prompt], 9))
        (score,) = scores(made, [(prompt, written.tokens)])
        assert score.is_greedy
        assert score.log_p == pytest.approx(float(torch.tensor(written.confidence).double().log().sum()), rel=1e-5)


def test_documents_end_with_a_block_of_their_own_grid():
    for given, answer in ((0, 5), (1, 5), (2, 5), (7, 3), (8, 8)):
        for pattern in (Block(4, block_anchor="prompt"), Block(4)):
            length = given + answer + pattern.tail(given + answer, given, random.Random(0))
            assert pattern.block_end(length - 1, given) == length and length - given - answer < 4


def test_the_trace_counts_positions_on_the_grid():
    results = pd.DataFrame({"prompt_tokens": [1, 5, 7, 8]})
    assert on_grid(results, Block(4, block_anchor="prompt"))["prompt_tokens"].tolist() == [1, 8, 8, 8]
    assert on_grid(results, Block(4))["prompt_tokens"].tolist() == [1, 5, 7, 8]


def test_what_is_watched_denoises_the_blocks_of_the_grid():
    recorder = Recorder(Numbers())
    Fixed(4).generate(scorer("block", 4, False), Request([[5] * 7], 8, on_step=lambda c: recorder.see(c, 0.0)))
    assert [step.block for step in recorder.steps] == [(7, 11), (11, 15)]


def test_keys_of_a_prompt_are_kept_only_where_they_do_not_depend_on_its_length():
    for anchor, kept in (("absolute", True), ("prompt", False)):
        made = Denoiser(shared("llama"), Block(4, block_anchor=anchor), MASK_ID, False, layer_types(shared("llama")))
        assert (Fixed(1).session(made, kept_tokens=100).prefixes is not None) == kept


def test_the_neutral_grid_adds_nothing_to_the_id_of_a_run_and_another_does():
    named = [config("attention=block", f"attention.block_anchor={a}") for a in ("absolute", "prompt")]
    plain = OmegaConf.to_container(named[0], resolve=True)
    del plain["attention"]["block_anchor"]
    ids = [run_id(OmegaConf.to_container(c, resolve=True)) for c in named]
    assert ids[0] == run_id(plain) != ids[1]


def test_an_unknown_grid_is_refused_by_name_and_a_config_makes_either():
    with pytest.raises(ValueError, match="attention.block_anchor 'row' is unknown: choose one of absolute, prompt"):
        Block(4, block_anchor="row")
    assert BlockNoisy(4, block_anchor="prompt") != BlockNoisy(4)
    assert BlockTokenCausal(4, block_anchor="prompt").at(8) == BlockTokenCausal(8, block_anchor="prompt")
    made = make(config("attention=block", "attention.block_anchor=prompt").attention)
    assert made.block_anchor is BlockAnchor.PROMPT
