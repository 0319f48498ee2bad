"""A Qwen3 with the vision tower of a Qwen3-VL: its text path is the parent's to the bit, its images have three axes."""

import random

import pytest
import torch
from convertible import random_model
from transformers import AutoTokenizer
from visions import ASSETS, reads_pictures

from dlm.data import scenes
from dlm.data.scenes.rows import prompt_of
from dlm.model.compose import compose, new_tower
from dlm.model.compose_qwen3_vl import compose_qwen3_vl, load_composed_qwen3_vl
from dlm.model.eos import eos_ids
from dlm.model.one_axis import heard_axes
from dlm.model.parent import load_parent
from dlm.model.vision import example_document

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 12}
LONG = str(ASSETS / "long")


@pytest.fixture(scope="module")
def parent():
    return load_composed_qwen3_vl(LONG, SIZE, 0.1, 0.3)


@reads_pictures
@torch.no_grad()
def test_it_reads_text_as_its_parent_does_and_pictures_on_three_axes_also_once_it_is_saved(parent, tmp_path):
    """Without torchvision, which the processor of Qwen3-VL needs for videos."""
    parent.model.save_pretrained(tmp_path)
    parent.save(tmp_path)
    ids = torch.arange(3, 60)[None]
    expected = load_parent(LONG, check=False).model(input_ids=ids).logits
    for ours in (parent, load_parent(str(tmp_path))):
        assert torch.equal(ours.model(input_ids=ids).logits[..., : expected.shape[-1]], expected)
        assert heard_axes(ours.model, example_document(ours.processor)) == 3
        pictures = [scenes.sample("list", "val", random.Random(seed)) for seed in (0, 1)]
        asked = [prompt_of(ours.processor, scene) for scene in pictures]
        logits = [
            ours.model(torch.tensor([ids]), **images.of_images, **images.of_tokens).logits[0, -1]
            for ids, images in asked
        ]
        assert not torch.equal(*logits) and asked[0][0].count(ours.model.config.image_token_id) == 16


def test_another_language_model_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    with pytest.raises(ValueError, match="llama cannot be composed as a Qwen3-VL: name a Qwen3"):
        compose_qwen3_vl(random_model("llama", vocab_size=len(tokenizer)), tokenizer, SIZE, 0.5, 0.5)


def test_a_language_model_with_sliding_windows_is_refused():
    """A Qwen3-VL has none, so that it would be another model behind the first window."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    layers = ["full_attention", "sliding_attention"]
    windows = random_model(
        "qwen3", vocab_size=len(tokenizer), num_hidden_layers=2, layer_types=layers, use_sliding_window=True
    )
    with pytest.raises(ValueError, match="a Qwen3 with layers of full_attention, sliding_attention cannot be composed"):
        compose_qwen3_vl(windows, tokenizer, SIZE, 0.5, 0.5)


def test_the_tokens_that_end_a_turn_and_the_special_tokens_of_the_parent_are_kept():
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    for name, make in (
        ("qwen3", lambda parent: compose_qwen3_vl(parent, tokenizer, SIZE, 0.5, 0.5)),
        ("llama", lambda parent: compose(parent, tokenizer, new_tower(SIZE, 0.5, 0.5, 0))),
    ):
        parent = random_model(name, vocab_size=len(tokenizer))
        parent.generation_config.eos_token_id = [0, 7]
        model, processor = make(parent)
        assert eos_ids(model, tokenizer) == [tokenizer.eos_token_id, 7]
        assert "<|turn|>" in processor.tokenizer.all_special_tokens


def test_sizes_that_do_not_go_together_are_refused():
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    qwen3 = random_model("qwen3", vocab_size=len(tokenizer))
    for wrong, named in (
        ({"patch_size": 10}, "size.image_size 48 must be a multiple of size.patch_size 10"),
        ({"patch_size": 3}, "size.patch_size 3 must be even: 2 x 2 patches become one token"),
        ({"num_attention_heads": 3}, "size.hidden_size 32 must be a multiple of 4 x size.num_attention_heads, 12"),
    ):
        with pytest.raises(ValueError, match=named):
            compose_qwen3_vl(qwen3, tokenizer, SIZE | wrong, 0.5, 0.5)
