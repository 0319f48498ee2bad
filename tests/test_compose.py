"""A language model with a vision tower: its text path is the parent's to the bit, or the parent is refused by name."""

import random
import sys

import pytest
import torch
from common import exit_code
from convertible import random_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    SiglipImageProcessorPil,
)
from visions import reads_pictures

from dlm import compose as command
from dlm.data import scenes
from dlm.model.compose import compose, new_tower, pretrained_tower

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 48, "patch_size": 12}


@pytest.fixture
def tower():
    return new_tower(SIZE, 0.1, 0.3, 0)


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained("dlm/assets/tiny")


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3"])
@torch.no_grad()
def test_the_composed_model_gives_the_logits_of_its_parent_also_once_it_is_saved(name, tower, tokenizer, tmp_path):
    parent = random_model(name, vocab_size=len(tokenizer), hidden_size=32)
    model, _ = compose(parent, tokenizer, tower)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    ids = torch.arange(3, 60)[None]
    expected = parent(input_ids=ids).logits
    for ours in (model, again):
        assert torch.equal(ours(input_ids=ids).logits[..., : expected.shape[-1]], expected)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("granite", {"logits_scaling": 8.0}, r"granite cannot be composed: .* scales them \(logits_scaling=8.0\)"),
        ("gemma2", {"final_logit_softcapping": 2.0, "attn": "eager"}, r"gemma2 cannot be composed: .* soft-caps them"),
        ("gpt2", {}, "gpt2 cannot be composed"),
    ],
    ids=["scaled", "soft-capped", "other names"],
)
def test_a_parent_whose_logits_would_change_is_refused_with_the_reason(name, values, reason, tower, tokenizer):
    with pytest.raises(ValueError, match=reason):
        compose(random_model(name, vocab_size=len(tokenizer), **values), tokenizer, tower)


def test_a_parent_that_sees_already_is_refused(tower, tokenizer):
    model, _ = compose(random_model("llama", vocab_size=len(tokenizer)), tokenizer, tower)
    with pytest.raises(ValueError, match="llava has a vision tower: name a parent that reads text only"):
        compose(model, tokenizer, tower)


@pytest.mark.parametrize("model_type", ["siglip_vision_model", "clip_vision_model"])
@reads_pictures
@torch.no_grad()
def test_a_pretrained_tower_keeps_its_weights_and_a_picture_its_patches(model_type, tokenizer, tmp_path):
    model = AutoModel.from_config(AutoConfig.for_model(model_type, intermediate_size=64, **SIZE)).eval()
    model.save_pretrained(tmp_path)
    kind = CLIPImageProcessorPil if "clip" in model_type else SiglipImageProcessorPil
    crop = {"crop_size": {"height": 48, "width": 48}} if "clip" in model_type else {}
    kind(size={"height": 48, "width": 48}, **crop).save_pretrained(tmp_path)
    composed, processor = compose(
        random_model("llama", vocab_size=len(tokenizer)), tokenizer, pretrained_tower(str(tmp_path))
    )
    weights = composed.model.vision_tower.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    scene = scenes.sample("list", "val", random.Random(0))
    inputs = processor(images=[scene.image], text=f"<image>{scene.prompt}", return_tensors="pt")
    assert (inputs["input_ids"] == composed.config.image_token_id).sum() == 16
    assert composed(**inputs).logits.isfinite().all()


@pytest.mark.trains
def test_the_command_writes_a_checkpoint_that_sees_and_never_overwrites(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compose", f"to={tmp_path / 'vlm'}", "image_mean=0.1"])
    command.main()
    assert "vision_tower of 378,816 parameters" in capsys.readouterr().out
    processor = AutoProcessor.from_pretrained(tmp_path / "vlm")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm")
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "list:"}]}]
    assert processor.apply_chat_template(ask, add_generation_prompt=True) == "<image>list:"
    logits = []
    for seed in (0, 1):
        scene = scenes.sample("list", "val", random.Random(seed))
        logits.append(model(**processor(images=[scene.image], text="<image>list:", return_tensors="pt")).logits)
    assert not torch.equal(*logits)
    parent = AutoModelForCausalLM.from_pretrained("dlm/assets/long")
    ids = processor.tokenizer("words:A8B3=", return_tensors="pt")["input_ids"]
    assert torch.equal(model(input_ids=ids).logits[..., :1024], parent(input_ids=ids).logits)
    assert exit_code(command.main) == 1 and "nothing is overwritten" in capsys.readouterr().err


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"size.image_size 48 must be a multiple of size.patch_size 10"):
        new_tower(SIZE | {"patch_size": 10}, 0.5, 0.5, 0)
    with pytest.raises(ValueError, match=r"size.hidden_size 32 must be a multiple of 4 x size.num_attention_heads, 12"):
        new_tower(SIZE | {"num_attention_heads": 3}, 0.5, 0.5, 0)
    with pytest.raises(ValueError, match=r"size.num_hidden_layers 0 must be at least 1"):
        new_tower(SIZE | {"num_hidden_layers": 0}, 0.5, 0.5, 0)
    with pytest.raises(ValueError, match=r"image_std 0.0 must be above 0: pixels are divided by it"):
        new_tower(SIZE, 0.5, 0.0, 0)


def test_the_parts_of_a_message_reach_a_template_that_knows_only_text(tower, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content.strip() }}{% endfor %}"
    _, processor = compose(random_model("llama", vocab_size=len(tokenizer)), tokenizer, tower)
    ask = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a disc"},
    ]
    assert processor.apply_chat_template(ask) == "[user]<image>what?[assistant]a disc"
