"""Images on one axis of positions: what the model computes, what remembers it, and what is refused."""

import copy

import pytest
import torch
from common import MASK_ID, everyday
from test_vision_export import ATTENTION, NEW, SHAPES, exported
from visions import ASSETS, PATCHED, arguments, document, prompts, reads_pictures, save_llava, vision

from dlm.decoding.engine.request import Request
from dlm.decoding.threshold import Threshold
from dlm.model.compose_qwen3_vl import load_composed_qwen3_vl
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.model.one_axis import apply_one_axis, heard_axes, mark_one_axis
from dlm.model.parent import load_parent
from dlm.model.pictured import joined
from dlm.model.vision import example_document

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 12}
LONG = str(ASSETS / "long")


def on_one_axis(family: str):
    """A tiny random model of a family that numbers all tokens on one axis."""
    model, (ids, _, pictures) = copy.deepcopy(vision(family)), document(family, 5, 3, 5, 8)
    mark_one_axis(model, arguments(ids, pictures))
    apply_one_axis(model)
    return model


@pytest.mark.parametrize("family", PATCHED)
@torch.no_grad()
def test_the_model_computes_what_it_does_with_positions_in_sequence_that_it_is_given(family):
    """The family's own forward takes positions; the hook changes nothing else, and text not at all."""
    (ids, _, pictures), model = document(family, 5, 3, 5, 8), on_one_axis(family)
    given, own = arguments(ids, pictures), vision(family)
    in_sequence = torch.arange(len(ids)).expand(3, 1, -1)
    expected = own(**given, position_ids=in_sequence, use_cache=False).logits
    assert torch.equal(model(**given, use_cache=False).logits, expected)
    assert not torch.allclose(own(**given, use_cache=False).logits, expected, atol=1e-2)
    text = ids[-8:][None]
    assert torch.equal(model(input_ids=text, use_cache=False).logits, own(input_ids=text, use_cache=False).logits)
    for context in (given, {"input_ids": text}):  # what is in a cache counts
        whole = model(**context, use_cache=False).logits[0, -1]
        before = {n: v[:, :-1] if v.shape == context["input_ids"].shape else v for n, v in context.items()}
        cache = model(**before, use_cache=True).past_key_values
        last = model(input_ids=context["input_ids"][:, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
        torch.testing.assert_close(last, whole)


@pytest.mark.trains
@pytest.mark.parametrize("family", everyday(PATCHED))
def test_an_export_decodes_on_one_axis_as_the_engine_does(family, tmp_path, monkeypatch):
    """Tokens and NFE; its config remembers the axis, as plain transformers do not know the hook."""
    model = on_one_axis(family)
    monkeypatch.setattr("test_vision_export.vision", lambda _: model)
    folder = exported(family, "block", True, tmp_path)
    texts, images = prompts(family, SHAPES)
    scorer = Denoiser(model, ATTENTION["block"], MASK_ID, True, layer_types(model))
    made = Threshold(0.2).generate(scorer, Request(texts, NEW, 2, images=images))
    kept = Threshold(0.2).generate(
        Denoiser(vision(family), ATTENTION["block"], MASK_ID, True, layer_types(model)),
        Request(texts, NEW, 2, images=images),
    )
    assert [m.tokens for m in made[:3]] != [k.tokens for k in kept[:3]] and made[3].tokens == kept[3].tokens
    for text, seen, expected in zip(texts, images, made, strict=True):
        given = {"input_ids": torch.tensor([text])} if seen is None else joined([torch.tensor(text)], [seen])
        out = folder.generate(**given, max_new_tokens=NEW, return_dict_in_generate=True)
        assert (out.sequences[0, len(text) :].tolist(), out.nfe.tolist()) == (expected.tokens, [expected.nfe])


@pytest.fixture(scope="module")
def three_axes(tmp_path_factory):
    """The folder of a parent whose images have three axes."""
    folder = tmp_path_factory.mktemp("three")
    parent = load_composed_qwen3_vl(LONG, SIZE)
    parent.model.save_pretrained(folder)
    parent.save(folder)
    return folder


@reads_pictures
def test_a_parent_on_one_axis_is_another_parent_and_its_folder_remembers_it(three_axes, tmp_path):
    """Its fingerprint differs, so that no measurement of the parent is taken for one of it."""
    own, one = load_parent(str(three_axes)), load_parent(str(three_axes), one_axis=True)
    assert own.fingerprint() != one.fingerprint()
    one.model.save_pretrained(tmp_path)
    one.save(tmp_path)
    for asked in (False, True):
        assert load_parent(str(tmp_path), one_axis=asked).fingerprint() == one.fingerprint()
    document = example_document(own.processor)
    assert (heard_axes(own.model, document), heard_axes(one.model, document)) == (3, 1)


def test_a_parent_with_one_axis_is_refused(tmp_path):
    save_llava(tmp_path / "llava", "{% for m in messages %}<image>{% endfor %}")
    with pytest.raises(ValueError, match="model.one_axis=true: llava has positions on one axis already"):
        load_parent(str(tmp_path / "llava"), one_axis=True)
    with pytest.raises(ValueError, match="model.one_axis=true: qwen3 has positions on one axis already"):
        load_parent(LONG, one_axis=True)


def test_a_parent_without_its_processor_is_refused_for_that(three_axes, monkeypatch):
    monkeypatch.setattr("dlm.model.parent.load_processor", lambda *_: None)
    with pytest.raises(ValueError, match="model.one_axis=true: qwen3_vl was loaded without its processor"):
        load_parent(str(three_axes), one_axis=True)


def test_the_axes_of_a_document_are_heard():
    for family, axes in (("qwen2_5_vl", 3), ("glm4v", 3), ("llava", 1), ("gemma3", 1)):
        ids, _, pictures = document(family, 5, 3, 5, 8)
        assert heard_axes(vision(family), arguments(ids, pictures)) == axes
