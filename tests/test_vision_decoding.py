"""Decoding with images in prompts: the parent's own generation, parity with training, batches of prompts."""

from itertools import repeat

import pytest
import torch
from common import EOS_ID, MASK_ID, PATTERNS, everyday, option_yaml, options, pattern_of
from omegaconf import OmegaConf
from test_vision import prepared
from visions import FAMILIES, IMAGE, arguments, document, packed, prompts, seeing

from dlm.attention.ar import AR
from dlm.attention.block import Block
from dlm.auxiliary.teacher import Teacher
from dlm.config.build import make
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import forward
from dlm.decoding.fixed import Fixed
from dlm.decoding.threshold import Threshold
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.rollout.trajectory import Trajectory
from dlm.types import Noised, generator

OTHERS = [("qwen3_vl", False), ("gemma3", True), ("smolvlm", False), ("smolvlm", True)]
SHAPES = [(3, 5, 1), (1, 2, 2), (7, 9, 1), (4, 3, 0)]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_one_token_write_what_the_parent_writes(family):
    """Token for token, also behind an image that spans several positions on three axes (I1)."""
    scorer = seeing(family, Block(1), True)
    ids, prompt, pictures = document(family, 5, 3, 5, 0)
    own = scorer.model.generate(
        **arguments(ids, pictures),
        do_sample=False,
        max_new_tokens=16,
        eos_token_id=None,
        suppress_tokens=[MASK_ID],
        pad_token_id=0,
    )[0, prompt:].tolist()
    got = Fixed(1).generate(scorer, Request([ids.tolist()] * 2, 16, images=[pictures] * 2))
    assert [g.tokens for g in got] == [own, own]


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_training_scores_a_block_as_decoding_with_a_cached_image_does(family, size, token_shift):
    """Prompts that end inside a block, and images that reach into it; at first with the prompt, then from the cache
    (I3)."""
    scorer = seeing(family, Block(size), token_shift)
    first, second = document(family, 1, 3, 1, 21), document(family, 2, 6, 0, 13, count=2)
    length = len(first[0]) + len(second[0])
    third = document(family, 3, 1, 4, length - document(family, 3, 1, 4, 0)[1])
    batch = scorer.scorable(packed([[first, second], [third]]))
    noised = Uniform(count="bernoulli", t_min=0.4)(batch, scorer.pattern.units(batch), MASK_ID, generator(3))
    ready = prepared(scorer, batch, noised=noised)
    trained, at = scorer(ready.inputs), {int(t): n for n, t in enumerate(ready.scored.index)}
    for row, start, (ids, prompt, pictures) in ((0, 0, first), (0, len(first[0]), second), (1, 0, third)):
        for begin in range(prompt // size * size, len(ids) - size + 1, size):
            here = slice(row * length + start + begin, row * length + start + begin + size)
            masked, xt = noised.masked.flatten()[here], noised.xt.flatten()[here]
            if not masked.any():
                continue
            request = Request([ids[: max(begin, prompt)].tolist()], size, images=[pictures])
            canvas = Canvas(scorer, request, [0], begin + 2 * size)
            canvas.start[:], canvas.x[0, begin : begin + size] = begin, xt
            canvas.masked[0, begin : begin + size], canvas.masked[0, begin + size :] = masked, True
            expected = trained[[at[here.start + int(j)] for j in masked.nonzero()]]
            for _ in range(2):
                logits = forward(scorer, canvas)
                fresh = expected[len(expected) - len(logits) :]  # with the shift, the first is scored once
                torch.testing.assert_close(logits.double(), fresh.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "token_shift"),
    [("qwen3_vl", True), ("gemma3", False), *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_prompts_side_by_side_are_decoded_as_each_alone(family, token_shift):
    """Prompts with one image, two and none, which join a batch as others leave it: tokens and NFE (I5)."""
    scorer = seeing(family, Block(4), token_shift)
    texts, images = prompts(family, SHAPES)
    for decoder in (Fixed(2), Threshold(0.2)):
        together = decoder.generate(scorer, Request(texts, 8, 2, batch_size=2, images=images))
        for text, image, found in zip(texts, images, together, strict=True):
            alone = decoder.generate(scorer, Request([text], 8, 2, images=[image]))[0]
            assert (found.tokens, found.nfe) == (alone.tokens, alone.nfe)


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_requests_with_images_that_join_a_session_become_what_each_becomes_alone(family):
    """A longer one widens the canvas of a shorter one; the same text about another image is read anew."""
    scorer = seeing(family, Block(4), True)
    texts, images = prompts(family, SHAPES[:1] * 2 + SHAPES[1:3])
    texts[1] = texts[0]
    decoder, requests = (
        Fixed(2),
        [Request([t], 6 + 7 * n, 2, images=[i]) for n, (t, i) in enumerate(zip(texts, images, strict=True))],
    )
    session, waiting, number, made = decoder.session(scorer, 1000), [*requests], {}, {}
    while waiting or session:
        if waiting and (made or not session):  # the first has left before others come
            request = waiting.pop(0)
            number[session.add(request, decoder.rule)[0]] = requests.index(request)
        session.step()
        made |= {number[ticket]: g for ticket, g in session.harvest().items()}
    for n, request in enumerate(requests):
        own = decoder.generate(scorer, request)[0]
        assert (made[n].tokens, made[n].nfe) == (own.tokens, own.nfe)


def test_what_was_removed_from_a_session_leaves_nothing_to_images_that_join():
    """Also before its first forward. Else the images would be lost with a canvas that has none."""
    scorer = seeing("llava", Block(32), False)
    texts, images = prompts("llava", SHAPES[:1])
    seen = Request(texts, 12, 2, images=images)
    for steps in (0, 1):
        session = Fixed(1).session(scorer)
        (ticket,) = session.add(Request([[5, 6]], 12, 2), Fixed(1).rule)
        for _ in range(steps):
            session.step()
        session.remove(ticket)
        (ticket,), made = session.add(seen, Fixed(1).rule), {}
        while session:
            session.step()
            made |= session.harvest()
        assert made[ticket].tokens == Fixed(1).generate(scorer, seen)[0].tokens


@pytest.mark.parametrize("steps", everyday([2, 0]))
@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("family", everyday(["qwen2_5_vl", "gemma3"]))
def test_a_request_of_text_and_one_with_images_join_and_neither_changes_the_other(family, text_first, steps):
    """Also where the text takes the cache that another text has left."""
    scorer, rule = seeing(family, Block(4), True), Fixed(1).rule
    texts, images = prompts(family, SHAPES[:1])
    requests = [Request([[5, 6, 7, 8, 9, 10]], 9, 2), Request(texts, 9, 2, images=images)]
    alone = [Fixed(1).generate(scorer, request)[0] for request in requests]
    order = (0, 1, 0) if text_first else (1, 0, 0)
    session, made, tickets = Fixed(1).session(scorer, kept_tokens=64), {}, []
    for number in order:
        tickets += session.add(requests[number], rule)
        for _ in range(steps):
            session.step()
            made |= session.harvest()
    while session:
        session.step()
        made |= session.harvest()
    assert [made[ticket].tokens for ticket in tickets] == [alone[number].tokens for number in order]


def test_the_image_tokens_of_a_prompt_are_not_read_as_text():
    """The probe of the tests above can fail: without the image, other tokens are written."""
    scorer = seeing("llava", Block(4), False)
    texts, images = prompts("llava", SHAPES[:1])
    assert IMAGE in texts[0]
    seen, unseen = (Fixed(1).generate(scorer, Request(texts, 12, images=i))[0].tokens for i in (images, ()))
    assert seen != unseen


def test_a_trajectory_is_made_with_the_images_of_its_prompt():
    """What the model writes in a rollout is what it decodes from prompt and image."""
    scorer = seeing("qwen3_vl", Block(4), True)
    ids, prompt, pictures = document("qwen3_vl", 1, 3, 4, 11)
    text = document("qwen3_vl", 2, 10, 5, len(ids) - 15, 0)
    rollout = Trajectory(Fixed(2), 4)
    rollout.eos_id, rollout.ends = EOS_ID, [EOS_ID]
    batch = scorer.scorable(packed([[text], [(ids, prompt, pictures)]]))
    masked = torch.zeros_like(batch.maskable)
    made, _ = rollout(scorer, batch, Noised(batch.x0, masked, masked.float()), generator(0))
    request = Request([ids[:prompt].tolist()], len(ids) - prompt, [EOS_ID], images=[pictures])
    tokens = Fixed(2).generate(scorer, request)[0].tokens
    assert made.x0[1, prompt : prompt + len(tokens)].tolist() == tokens


@torch.no_grad()
def test_a_teacher_reads_the_images_that_the_student_reads():
    scorer, teacher = seeing("gemma3", Block(4), True), Teacher(AR(), True)
    teacher.denoiser = Denoiser(scorer.model, AR(), MASK_ID, True, scorer.layer_types, scorer.span_ids)
    batch = scorer.scorable(packed([[document("gemma3", 1, 3, 4, 11)]]))
    noised = Noised(batch.x0, batch.maskable, batch.maskable.float())
    _, scored = scorer.inputs(batch, noised)
    own = scorer.model(**arguments(batch.x0[0], batch.images[0][0]), use_cache=False).logits[0]
    got = teacher.logits(teacher.hidden(teacher.lesson(batch, noised, scored).inputs))
    expected = own[scored.index - 1].double()
    expected[:, MASK_ID] = -torch.inf
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen3_vl", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_fixed_shapes_give_the_same(family, uncompiled):
    """Prompts take the places of others, in place, and no forward but the first reads a token of an image."""
    scorer = seeing(family, Block(4), True)
    texts, images = prompts(family, SHAPES)
    free, fixed = (
        Threshold(0.2).generate(scorer, Request(texts, 8, 2, batch_size=2, images=images, compile=compile))
        for compile in (False, True)
    )
    assert [(g.tokens, g.nfe) for g in fixed] == [(g.tokens, g.nfe) for g in free] and uncompiled


USUAL = ("prefix_cache", "pipelined", "self_speculative", "soft")
DECODERS = [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in options("decoding")]


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_reads_images_in_a_batch_as_alone(name):
    """Drafts that AR verifies, several blocks at once, soft tokens, approximate caches, and the rest (I5)."""
    decoder = make(OmegaConf.create({"block_size": 4, "decoding": option_yaml("decoding", name)}).decoding)
    pattern = next(p for p in map(pattern_of, PATTERNS, repeat(4)) if decoder.takes(p) is None)
    scorer = seeing("qwen3_vl", pattern, pattern.requires_token_shift)
    texts, images = prompts("qwen3_vl", SHAPES[:2])
    together = decoder.generate(scorer, Request(texts, 6, 2, images=images))
    for text, image, found in zip(texts, images, together, strict=True):
        (alone,) = decoder.generate(scorer, Request([text], 6, 2, images=[image]))
        assert (found.tokens, found.nfe) == (alone.tokens, alone.nfe)
    blind = decoder.generate(scorer, Request(texts, 6, 2))
    assert [g.tokens for g in blind] != [g.tokens for g in together]
