"""What implementations of vision-language diffusion got wrong, and what must be noticed: every control changes what is
predicted. (Noise that grows with the place of a block, a question inside an answer's block, and thresholds are held for
all documents by tests/test_traps.py and tests/test_chat.py.)"""

from dataclasses import replace

import pytest
import torch
from common import EOS_ID, MASK_ID
from transformers import AutoConfig, AutoModelForImageTextToText
from visions import CLIP, FAMILIES, IMAGE, PATCHED, TEXT, blind, document, packed, seeing

from dlm.attention.block import Block
from dlm.data.packing import Document, pack
from dlm.decoding.engine.canvas import Canvas
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.step import step
from dlm.decoding.fixed import Fixed, MostConfident
from dlm.decoding.threshold import Threshold
from dlm.masking.uniform import Uniform
from dlm.model import denoiser as module
from dlm.model.context import record
from dlm.model.image_probe import check_images
from dlm.model.layers import layer_types
from dlm.model.probe import check_convertible
from dlm.types import Noised, generator


@torch.no_grad()
def states(scorer, batch, **changes):
    masked = batch.maskable & (batch.position % 2 == 0)
    noised = Noised(torch.where(masked, MASK_ID, batch.x0), masked, masked.float())
    inputs, _ = scorer.inputs(scorer.scorable(batch), noised)
    return scorer.read(replace(inputs, rows=replace(inputs.rows, **changes)))


def on_one_axis(context):
    return replace(context, position_ids=torch.arange(context.given.shape[1]).expand(context.given.shape)[..., None])


def without_deep_features(context):
    return replace(context, of_given={name: [v * 0 for v in values] for name, values in context.of_given.items()})


CONTROLS = [(family, blind) for family in FAMILIES]
CONTROLS += [(family, on_one_axis) for family in PATCHED] + [("qwen3_vl", without_deep_features)]


@pytest.mark.parametrize(("family", "control"), CONTROLS)
def test_what_is_read_of_an_image_changes_the_answer(family, control, monkeypatch):
    """Without the image, with positions on one axis, without the features of deeper layers."""
    scorer, batch = seeing(family, Block(8), True), packed([[document(family, 5, 3, 5, 20)]])
    whole = states(scorer, batch)
    monkeypatch.setattr(module, "record", lambda *arguments: control(record(*arguments)))
    assert (states(scorer, batch) - whole).abs().max() > 0.1 * whole.std()


def test_an_image_that_is_seen_both_ways_is_another_one_than_a_causal_image():
    scorer, batch = seeing("gemma3", Block(4), True), packed([[document("gemma3", 5, 9, 8, 20)]])
    whole = states(scorer, batch)
    assert scorer.span_ids == (IMAGE,)
    scorer.span_ids = ()
    assert (states(scorer, batch) - whole).abs().max() > 0.01 * whole.std()


@torch.no_grad()
def test_a_mask_is_known_by_its_place_and_not_by_its_embedding():
    """A token whose embedding is that of the mask token is as decoded as any other: every block ends after as many
    forwards as it has masks, and its keys are stored."""
    scorer, (ids, prompt, pictures) = seeing("llava", Block(4), False), document("llava", 5, 3, 5, 0)
    weight = scorer.model.get_input_embeddings().weight
    before = weight[MASK_ID].clone()
    try:
        new = 12 - prompt % 4  # up to the end of a block
        request = Request([ids.tolist()], new, images=[pictures])
        common = Fixed(1).generate(scorer, request)[0].tokens[0]
        weight[MASK_ID] = weight[common]
        canvas = Canvas(scorer, request, [0], prompt + new)
        forwards = 0
        while not canvas.finished.any():
            step(scorer, canvas, MostConfident(1))
            forwards += 1
            assert canvas.written[0] >= canvas.start[0] - 4
        tokens = canvas.results([0])[0].tokens
    finally:
        weight[MASK_ID] = before
    assert forwards == len(tokens) == new and MASK_ID not in tokens


def test_a_threshold_of_one_is_a_token_a_forward_with_an_image_in_the_cache():
    scorer, (ids, prompt, pictures) = seeing("qwen3_vl", Block(8), False), document("qwen3_vl", 5, 3, 5, 0)
    request = Request([ids.tolist()], 16 - prompt % 8, images=[pictures])
    static, dynamic = (decoder.generate(scorer, request)[0] for decoder in (Fixed(1), Threshold(1.0)))
    assert dynamic == static and static.nfe == len(static.tokens)


def test_the_noise_of_an_answer_does_not_depend_on_how_far_behind_the_image_its_block_is():
    """One document alone in its batch: every block of the answer is hidden by half on average."""
    ids, prompt, pictures = document("llava", 5, 6, 6, 32)
    batch, pattern = packed([[(ids, prompt, pictures)]]), Block(8)
    draws = [Uniform()(batch, pattern.units(batch), MASK_ID, generator(n)).masked[0] for n in range(400)]
    hidden = torch.stack(draws).double().mean(0)
    assert not hidden[:prompt].any()
    whole = hidden[-(-prompt // 8) * 8 : len(ids) // 8 * 8].unflatten(0, (-1, 8)).mean(1)
    torch.testing.assert_close(whole, torch.full_like(whole, 0.5), rtol=0, atol=0.07)


def test_the_fill_of_a_document_with_images_is_marked_and_its_images_are_kept():
    ids, prompt, pictures = document("llava", 5, 3, 5, 6)
    text = [*ids.tolist(), EOS_ID]
    ended = Document(text, [n >= prompt for n in range(len(text))], images=pictures).ended(EOS_ID, 3)
    row = pack([ended], len(text) + 3, 1)
    assert row.images[0][0] is pictures
    assert row.fill.sum() == 3 and row.targets.sum() == len(text) - prompt


def test_an_image_that_a_row_cuts_is_refused():
    ids, prompt, pictures = document("llava", 5, 3, 5, 6)
    batch = packed([[(ids[: prompt - 4], prompt - 8, pictures)]])
    with pytest.raises(ValueError, match=f"cut to {prompt - 4} of the {prompt} tokens.*raise data.length"):
        states(seeing("llava", Block(1), False), batch)


def refused(family: str, vision: dict, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vision_config=vision, **options)
    model = AutoModelForImageTextToText.from_config(config).eval()
    types = layer_types(model)
    check_convertible(model, types)
    ids = torch.tensor([[7, 8, IMAGE, 9, 10, 11, 12, 13]])
    tower = {"aspect_ratio_ids": ids[:, :1] * 0 + 1, "aspect_ratio_mask": ids[:, :1, None] * 0 + 1}
    tower |= {"cross_attention_mask": ids[..., None, None] * 0 + 1, "pixel_values": torch.randn(1, 1, 1, 3, 16, 16)}
    check_images(model, types, {"input_ids": ids, **tower})


def test_models_that_cannot_be_laid_out_are_refused_by_name():
    """Images that are read by cross attention, and prefixes whose tokens all see each other."""
    tower = CLIP | {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 96, "max_num_tiles": 1}
    tower |= {"intermediate_layers_indices": [0, 1], "supported_aspect_ratios": [[1, 1]]}
    with pytest.raises(ValueError, match="mllama cannot be converted with images: .*cross_attention_states"):
        refused("mllama", tower, text_config=TEXT | {"cross_attention_layers": [1]}, image_token_index=IMAGE)
    options = {"text_config": TEXT | {"model_type": "gemma", "head_dim": 16}, "projection_dim": 32}
    tower = CLIP | {"model_type": "siglip_vision_model", "projection_dim": 32}
    with pytest.raises(ValueError, match="paligemma cannot be converted: it is not autoregressive"):
        refused("paligemma", tower, image_token_id=IMAGE, hidden_size=32, **options)


def test_inputs_of_deeper_layers_that_follow_from_text_are_refused(monkeypatch):
    """As Gemma 3n has them: they would be those of the clean tokens where tokens are hidden."""
    scorer = seeing("llava", Block(1), True)
    decoder, batch = scorer.model.get_decoder(), packed([[document("llava", 5, 3, 5, 6)]])
    heard = module.embedded
    own = type(scorer.model.base_model).forward

    def forward(self, *args, **kwargs):
        forward_of_decoder = decoder.forward

        def more(**given):
            return forward_of_decoder(**given, per_layer_inputs=heard(scorer.model, batch.x0))

        monkeypatch.setattr(decoder, "forward", more)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(scorer.model.base_model), "forward", forward)
    with pytest.raises(ValueError, match="llava cannot be converted with images: its decoder takes per_layer_inputs"):
        states(scorer, batch)
