"""What is watched of a run on pictures: its trace, what a policy learns from, and the page with the picture in it."""

import base64
import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dlm.attention.block import Block
from dlm.data import tasks
from dlm.decoding.engine.request import Request
from dlm.decoding.fixed import Fixed
from dlm.evaluation.generation import prompts_of
from dlm.measurement.trace import Trace
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.model.parent import load_parent
from dlm.policy import observe
from dlm.watch.page import page
from dlm.watch.picture import SIDE, embedded_picture
from dlm.watch.trace import Race

ASKED = ("scenes.grid",)


@pytest.fixture(scope="module")
def subject():
    """The embedded parent under blocks, as a measurement sees a run on scenes."""
    parent = load_parent("pkg://dlm/assets/vlm")
    scorer = Denoiser(parent.model, Block(4), parent.mask_id, True, parent.layer_types, parent.span_ids)
    return SimpleNamespace(dlm=scorer, converted=parent, asked=ASKED)


def request(subject, items: int, new: int) -> Request:
    examples = tasks.evaluation_set("val", items, families=ASKED)
    prompts, images = zip(*prompts_of(subject.converted.reader, examples), strict=True)
    ends = eos_ids(subject.dlm.model, subject.converted.tokenizer)
    return Request(list(prompts), new, ends, images=images)


def test_a_trace_of_scenes_is_of_the_answers_that_the_pictures_get(subject):
    traced = Trace(Fixed(1), "val", 1, 8, 2)(subject)
    (made,) = Fixed(1).generate(subject.dlm, request(subject, 1, 8))
    example, tokenizer = traced["example"], subject.converted.tokenizer
    assert traced["items"] == 1 and example["prompt"] == "grid:"
    assert example["tokens"] == [tokenizer.decode([token]) for token in made.tokens]
    assert len({cell["step"] for cell in example["cells"]}) == made.nfe


def test_a_policy_learns_from_predictions_that_have_seen_the_pictures(subject):
    asked = request(subject, 2, 8)
    seen, blind = (observe(subject.dlm, r) for r in (asked, Request(asked.prompts, 8, asked.eos_ids)))
    made = Fixed(1).generate(subject.dlm, asked)
    assert set(seen.prompt) == {0, 1} and len(seen.x) >= sum(len(g.tokens) for g in made)
    assert len(seen.x) != len(blind.x) or abs(seen.x - blind.x).max() > 0.1


@pytest.mark.parametrize(("size", "kind"), [((48, 30), "png"), ((1200, 600), "jpeg")])
def test_a_picture_is_in_the_page_whole_or_made_smaller_and_its_name_is_a_text(size, kind):
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0))
    drawing = noise[:1, :1].expand_as(noise)
    picture = Image.fromarray((drawing if kind == "png" else noise).byte().numpy())
    made = embedded_picture('<img src="x">.png', picture)
    begin, _, data = made.source.partition(";base64,")
    assert begin == f"data:image/{kind}" and len(made.source) < 400_000
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.size == (made.width, made.height) and max(shown.size) <= SIDE
        if kind == "png":
            assert shown.tobytes() == picture.tobytes()
    text = page([Race("what?", {}, [], [made])])
    assert data in text and '<img src="x">' not in text
